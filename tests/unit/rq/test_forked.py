"""What a work-horse tells its worker, in one process that plays both."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobmetrics.events import FAILURE, RETRY, SUCCESS, Ended, Job, Started
from jobmetrics.recorder import default
from jobmetrics.rq.forked import Forked, before_fork, shared_page
from jobmetrics.settings import Settings
from tests import readings
from tests.unit.doubles import die

LABELS = ("rq", "app.job", "high")


class Refused(Exception):
    pass


@pytest.fixture
def forked(in_force: Settings) -> Iterator[Forked]:
    made = before_fork(shared_page(), Started(Job(*LABELS), "1:2"))
    assert made is not None
    yield made
    die(default().writer)


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> None:
    """The work-horse's parent is the worker that forked it."""
    monkeypatch.setattr(os, "getppid", os.getpid)


@pytest.mark.usefixtures("child")
@pytest.mark.parametrize(
    ("ended", "status", "error"),
    [
        (Ended(SUCCESS), "success", None),
        (Ended(RETRY), "retry", None),
        (Ended(FAILURE, Refused("on purpose")), "failure", "Refused"),
        (Ended(FAILURE, "MaxRetriesExceeded"), "failure", "MaxRetriesExceeded"),
        (Ended(FAILURE, type("\u00e4" * 300, (Exception,), {})()), "failure", "\u00e4" * 255 + "…"),
        (Ended(FAILURE), "failure", "unknown"),
    ],
)
def test_what_is_told_is_recorded_by_the_worker(
    ended: Ended, status: str, error: str | None, forked: Forked, registry_dir: Path
) -> None:
    forked.begin()
    assert readings.active(registry_dir) == {LABELS: 1}
    forked.end(ended)
    assert readings.values(registry_dir, "jobs_total") == {}
    forked.execution.ended = False  # the worker's own copy does not know
    assert forked.record_told()
    assert readings.values(registry_dir, "jobs_total") == {(*LABELS, status): 1}
    assert readings.values(registry_dir, "jobs_failures_total") == ({(*LABELS, error): 1} if error else {})
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
    forked.end(Ended(SUCCESS))
    forked.execution.ended, forked.execution.target = False, None
    forked.record_told()
    assert readings.values(registry_dir, "jobs_within_target_total") == ({LABELS: within} if within else {})


def test_silence_is_no_end(forked: Forked, registry_dir: Path) -> None:
    forked.begin()
    assert not forked.record_told()
    assert readings.active(registry_dir) == {LABELS: 1}
    assert readings.values(registry_dir, "jobs_total") == {}


def test_without_a_worker_it_records_for_itself(forked: Forked, registry_dir: Path) -> None:
    forked.begin()
    forked.end(Ended(SUCCESS))  # the test's parent is no worker
    assert readings.values(registry_dir, "jobs_total") == {(*LABELS, "success"): 1}


@pytest.mark.usefixtures("child")
def test_message_of_the_last_work_horse_is_not_taken_for_the_next_ones(in_force: Settings, registry_dir: Path) -> None:
    page = shared_page()
    first = before_fork(page, Started(Job(*LABELS), "1:1"))
    assert first is not None
    first.begin()
    first.end(Ended(SUCCESS))
    second = before_fork(page, Started(Job(*LABELS), "1:2"))
    assert second is not None
    assert not second.record_told()
    die(default().writer)
