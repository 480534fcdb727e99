"""Reports of a work-horse to its worker; one process plays both."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from jobmetrics import guard, settings
from jobmetrics.events import CPU_OF_CALLER, FAILURE, RETRY, STATUSES, SUCCESS, Ended, Job, Started
from jobmetrics.recorder import Recorder, default
from jobmetrics.registry.write.writer import Writer
from jobmetrics.rq import fork_horse as forking
from jobmetrics.rq.fork_horse import ForkedJob, SharedPage, before_fork
from jobmetrics.rq.outcomes import report_abandoned
from jobmetrics.runtime import replaced
from jobmetrics.settings import Settings
from tests.support import readings
from tests.unit.doubles import die

JOB = Job("rq", "app.job", "high")
LABELS = tuple(JOB)


class Refused(Exception):
    pass


@pytest.fixture
def forked(active_settings: Settings) -> Iterator[ForkedJob]:
    made = before_fork(SharedPage(), default(), Started(JOB, "1:2", cpu=CPU_OF_CALLER))
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
def test_the_worker_records_a_reported_end(
    status: str, error: BaseException | str | None, error_type: str | None, forked: ForkedJob, registry_dir: Path
) -> None:
    forked.begin()
    assert readings.active(registry_dir) == {LABELS: 1}
    forked.end(Ended(status, error))
    assert readings.values(registry_dir, "jobs_total") == {}
    assert forked.record_reported()
    assert readings.values(registry_dir, "jobs_total") == {(*LABELS, status): 1}
    assert readings.values(registry_dir, "jobs_failures_total") == ({(*LABELS, error_type): 1} if error_type else {})
    assert readings.active(registry_dir) == {}
    assert forked.record_reported()  # and not again
    assert readings.values(registry_dir, "jobs_total") == {(*LABELS, status): 1}
    readings.assert_durations_add_up(registry_dir)


@pytest.mark.usefixtures("child")
@pytest.mark.parametrize(("target", "within"), [(3600.0, 1.0), (0.0, 0.0)])
def test_target_that_the_job_declared_is_judged_by_its_own_run_time(
    target: float, within: float, forked: ForkedJob, registry_dir: Path
) -> None:
    forked.begin()
    default().set_target(forked.execution, target)
    forked.end(Ended(SUCCESS))
    forked.execution.target = None  # the worker's own copy does not know
    forked.record_reported()
    assert readings.values(registry_dir, "jobs_within_target_total") == ({LABELS: within} if within else {})


@pytest.mark.usefixtures("child")
def test_error_is_named_once_by_the_work_horses_mapping(registry_dir: Path) -> None:
    settings.configure(dir=registry_dir, error_types={f"{__name__}.Refused": "refused", "builtins.Exception": "other"})
    made = before_fork(SharedPage(), default(), Started(JOB, "1:2", cpu=CPU_OF_CALLER))
    assert made is not None
    made.begin()
    made.end(Ended(FAILURE, Refused("on purpose")))
    made.record_reported()
    assert readings.values(registry_dir, "jobs_failures_total") == {(*LABELS, "refused"): 1}
    die(default().writer)


def test_without_a_report_no_end_is_recorded(forked: ForkedJob, registry_dir: Path) -> None:
    forked.begin()
    assert not forked.record_reported()
    assert readings.active(registry_dir) == {LABELS: 1}
    assert readings.values(registry_dir, "jobs_total") == {}


def test_without_a_worker_it_records_for_itself(forked: ForkedJob, registry_dir: Path) -> None:
    forked.begin()
    forked.end(Ended(SUCCESS))  # the test's parent is no worker
    assert readings.values(registry_dir, "jobs_total") == {(*LABELS, "success"): 1}


@pytest.mark.usefixtures("active_settings")
def test_end_of_a_work_horse_is_counted_once_after_its_worker_died(registry_dir: Path) -> None:
    """Another worker may have read the expired entries just before."""
    released, release = os.pipe()
    worker = os.fork()
    if worker == 0:
        made = before_fork(SharedPage(), default(), Started(JOB, "1:2", cpu=CPU_OF_CALLER))
        assert made is not None
        if os.fork() == 0:
            made.begin()
            readings.until(lambda: os.getppid() != made._worker, "the worker to be gone")
            made.end(Ended(SUCCESS))
            os.write(release, b"x")
        os._exit(0)
    os.waitpid(worker, 0)
    os.read(released, 1)
    assert readings.values(registry_dir, "jobs_total") == {(*LABELS, "success"): 1}
    job: Any = SimpleNamespace(data=b'["app.job", null, [], {}]', origin="high")
    report_abandoned(job, None, "1:2", will_retry=False)
    assert readings.values(registry_dir, "jobs_total") == {(*LABELS, "success"): 1}
    die(default().writer)


@pytest.mark.usefixtures("child")
def test_report_of_the_previous_work_horse_is_not_the_next_ones(active_settings: Settings, registry_dir: Path) -> None:
    page = SharedPage()
    first = before_fork(page, default(), Started(JOB, "1:1", cpu=CPU_OF_CALLER))
    assert first is not None
    first.begin()
    first.end(Ended(SUCCESS))
    second = before_fork(page, default(), Started(JOB, "1:2", cpu=CPU_OF_CALLER))
    assert second is not None
    assert not second.record_reported()
    die(default().writer)


# ------------------------------------------------------------------ equal to a work-horse that records for itself

seconds = st.floats(0.0, 1e6)
impossible = st.sampled_from([-1.0, float("nan"), float("inf")])
errors = st.one_of(
    st.none(),
    st.text(max_size=300),
    st.sampled_from([Refused("on purpose"), KeyError(), type("\u00e4" * 300, (Exception,), {})()]),
)


class Run(NamedTuple):
    """An execution: how it ends, the target that it declares, its run time and its processor time."""

    status: str
    error: BaseException | str | None
    target: float | None
    run_seconds: float
    cpu_seconds: float


runs = st.builds(
    Run, st.sampled_from(STATUSES), errors, st.one_of(st.none(), seconds), seconds, st.one_of(seconds, impossible)
)


def by_page(record: Recorder, run: Run, page: SharedPage, patch: pytest.MonkeyPatch) -> None:
    """As a work-horse reports to its worker."""
    made = before_fork(page, record, Started(JOB, "1:2", WALL - 2.0, cpu=CPU_OF_CALLER))
    assert made is not None
    for name, seconds in (("perf_counter", run.run_seconds), ("process_time", run.cpu_seconds)):
        patch.setattr(forking, name, iter((0.0, seconds)).__next__)
    made.begin()
    if run.target is not None:
        record.set_target(made.execution, run.target)
    made.end(Ended(run.status, run.error))
    made.execution.target = None  # the worker's own copy does not know
    assert made.record_reported()


def plainly(record: Recorder, run: Run) -> None:
    """As a work-horse records for itself."""
    execution = record.started(Started(JOB, "1:2", WALL - 2.0, cpu=CPU_OF_CALLER))
    assert execution is not None
    if run.target is not None:
        record.set_target(execution, run.target)
    record.ended(execution, Ended(run.status, run.error, run.cpu_seconds, run.run_seconds))


WALL = 1_700_000_000.0


def everything(path: Path) -> dict[str, object]:
    """Each cell of a directory, by family and label values."""
    found = readings.snapshot(path)
    return {family.name: {each.values: each for each in samples} for family, samples in found.families}


@examples(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(made=st.lists(runs, max_size=4))
def test_page_records_what_a_work_horse_would_record_for_itself(made: list[Run], tmp_path: Path) -> None:
    """The same cells, and the same errors counted."""
    found = []
    for way in ("page", "plain"):
        with tempfile.TemporaryDirectory(dir=tmp_path) as base, pytest.MonkeyPatch.context() as patch, replaced():
            patch.setattr(forking, "times", lambda: (0.0,) * 5)
            patch.setattr(forking, "getppid", os.getpid)
            active_settings = settings.load({}, dir=Path(base) / "registry")
            record = Recorder(Writer(active_settings), active_settings, wall=lambda: WALL)
            page = SharedPage()
            for run in made:
                if way == "page":
                    by_page(record, run, page, patch)
                else:
                    plainly(record, run)
            record.show_dropped()
            found.append((everything(Path(base) / "registry") if made else {}, guard.take_counts()))
            die(record.writer)
    assert found[0] == found[1]
