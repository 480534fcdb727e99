"""What a work-horse tells its worker, in one process that plays both."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobmetrics import settings
from jobmetrics.events import FAILURE, RETRY, SUCCESS, Job, Started
from jobmetrics.recorder import default
from jobmetrics.rq import fork_horse as forking
from jobmetrics.rq.fork_horse import Forked, SharedPage, before_fork
from jobmetrics.rq.outcomes import report_abandoned
from jobmetrics.settings import Settings
from tests.support import readings
from tests.unit.doubles import die

LABELS = ("rq", "app.job", "high")


class Refused(Exception):
    pass


@pytest.fixture
def forked(in_force: Settings) -> Iterator[Forked]:
    made = before_fork(SharedPage(), default(), Started(Job(*LABELS), "1:2"))
    assert made is not None
    yield made
    die(default().writer)


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> None:
    """The work-horse's parent is the worker that forked it."""
    monkeypatch.setattr(forking, "getppid", os.getpid)


@pytest.mark.usefixtures("child")
@pytest.mark.parametrize(
    ("status", "error", "error_type"),
    [
        (SUCCESS, None, None),
        (RETRY, None, None),
        (FAILURE, Refused("on purpose"), "Refused"),
        (FAILURE, "MaxRetriesExceeded", "MaxRetriesExceeded"),
        (FAILURE, type("\u00e4" * 300, (Exception,), {})(), "\u00e4" * 255 + "…"),
        (FAILURE, None, "unknown"),
    ],
)
def test_what_is_told_is_recorded_by_the_worker(
    status: str, error: BaseException | str | None, error_type: str | None, forked: Forked, registry_dir: Path
) -> None:
    forked.begin()
    assert readings.active(registry_dir) == {LABELS: 1}
    forked.end(status, error)
    assert readings.values(registry_dir, "jobs_total") == {}
    assert forked.record_told()
    assert readings.values(registry_dir, "jobs_total") == {(*LABELS, status): 1}
    assert readings.values(registry_dir, "jobs_failures_total") == ({(*LABELS, error_type): 1} if error_type else {})
    assert readings.active(registry_dir) == {}
    assert forked.record_told()  # and not again
    assert readings.values(registry_dir, "jobs_total") == {(*LABELS, status): 1}
    readings.assert_durations_add_up(registry_dir)


@pytest.mark.usefixtures("child")
@pytest.mark.parametrize(("target", "within"), [(3600.0, 1.0), (0.0, 0.0)])
def test_target_that_the_job_declared_is_judged_by_its_own_run_time(
    target: float, within: float, forked: Forked, registry_dir: Path
) -> None:
    forked.begin()
    default().set_target(forked.execution, target)
    forked.end(SUCCESS, None)
    forked.execution.target = None  # the worker's own copy does not know
    forked.record_told()
    assert readings.values(registry_dir, "jobs_within_target_total") == ({LABELS: within} if within else {})


@pytest.mark.usefixtures("child")
def test_error_is_named_once_by_the_work_horses_mapping(registry_dir: Path) -> None:
    settings.configure(dir=registry_dir, error_types={f"{__name__}.Refused": "refused", "builtins.Exception": "other"})
    made = before_fork(SharedPage(), default(), Started(Job(*LABELS), "1:2"))
    assert made is not None
    made.begin()
    made.end(FAILURE, Refused("on purpose"))
    made.record_told()
    assert readings.values(registry_dir, "jobs_failures_total") == {(*LABELS, "refused"): 1}
    die(default().writer)


def test_silence_is_no_end(forked: Forked, registry_dir: Path) -> None:
    forked.begin()
    assert not forked.record_told()
    assert readings.active(registry_dir) == {LABELS: 1}
    assert readings.values(registry_dir, "jobs_total") == {}


def test_without_a_worker_it_records_for_itself(forked: Forked, registry_dir: Path) -> None:
    forked.begin()
    forked.end(SUCCESS, None)  # the test's parent is no worker
    assert readings.values(registry_dir, "jobs_total") == {(*LABELS, "success"): 1}


@pytest.mark.usefixtures("in_force")
def test_end_of_a_work_horse_whose_worker_is_dead_is_nobody_elses_to_count(registry_dir: Path) -> None:
    """Another worker may have looked at what has expired a moment before."""
    told, tell = os.pipe()
    worker = os.fork()
    if worker == 0:
        made = before_fork(SharedPage(), default(), Started(Job(*LABELS), "1:2"))
        assert made is not None
        if os.fork() == 0:
            made.begin()
            readings.until(lambda: os.getppid() != made._worker, "the worker to be gone")
            made.end(SUCCESS, None)
            os.write(tell, b"x")
        os._exit(0)
    os.waitpid(worker, 0)
    os.read(told, 1)
    assert readings.values(registry_dir, "jobs_total") == {(*LABELS, "success"): 1}
    job: Any = SimpleNamespace(data=b'["app.job", null, [], {}]', origin="high")
    report_abandoned(job, None, "1:2", again=False)
    assert readings.values(registry_dir, "jobs_total") == {(*LABELS, "success"): 1}
    die(default().writer)


@pytest.mark.usefixtures("child")
def test_message_of_the_last_work_horse_is_not_taken_for_the_next_ones(in_force: Settings, registry_dir: Path) -> None:
    page = SharedPage()
    first = before_fork(page, default(), Started(Job(*LABELS), "1:1"))
    assert first is not None
    first.begin()
    first.end(SUCCESS, None)
    second = before_fork(page, default(), Started(Job(*LABELS), "1:2"))
    assert second is not None
    assert not second.record_told()
    die(default().writer)
