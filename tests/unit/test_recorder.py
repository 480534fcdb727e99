from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobmetrics import guard, recorder
from jobmetrics.events import (
    CPU_OF_CALLER,
    CPU_OF_FAMILY,
    CPU_OF_JOB,
    CPU_OF_THREAD,
    STATUSES,
    WITHDRAWN_REASONS,
    Ended,
    Job,
    Lost,
    Published,
    Started,
    Withdrawn,
)
from jobmetrics.families import OVERFLOW, register_system
from jobmetrics.recorder import FLUSH_INTERVAL, Recorder
from jobmetrics.registry.read import SnapshotReader
from jobmetrics.registry.write import fork_hooks
from jobmetrics.registry.write.writer import Writer
from jobmetrics.settings import Settings, load
from jobmetrics.testing import CountingClock
from tests.support import readings
from tests.unit.doubles import FakeClock, die

JOB = Job("celery", "app.resize", "images")
LABELS = ("celery", "app.resize", "images")
OK = Ended("success")


class Refused(Exception):
    pass


class RefusedHarder(Refused):
    pass


@pytest.fixture
def wall() -> FakeClock:
    return FakeClock(1_700_000_000.0)


@pytest.fixture
def record(writer: Writer, active_settings: Settings, wall: FakeClock, clock: FakeClock) -> Recorder:
    return Recorder(writer, active_settings, wall=wall, clock=clock)


def recorder_with(writer: Writer, **keywords: object) -> Recorder:
    return Recorder(writer, load({}, **keywords))


@pytest.fixture
def other_worker(active_settings: Settings, wall: FakeClock) -> Iterator[Recorder]:
    """Another worker process."""
    made = Recorder(Writer(active_settings), active_settings, wall=wall, clock=FakeClock())
    yield made
    die(made.writer)


def run(record: Recorder, end: Ended = OK, job: Job = JOB, execution_id: str = "1") -> None:
    execution = record.started(Started(job, execution_id))
    assert execution is not None
    record.ended(execution, end)


def jobs(registry_dir: Path) -> dict[str, float]:
    """Executions of the job by status."""
    found = readings.values(registry_dir, "jobs_total")
    assert {values[:3] for values in found} <= {LABELS}
    return {values[3]: number for values, number in found.items()}


# ------------------------------------------------------------------ start and end


@pytest.mark.parametrize("status", STATUSES)
def test_an_execution_is_counted_by_status(registry_dir: Path, record: Recorder, status: str) -> None:
    run(record, Ended(status))
    assert jobs(registry_dir) == {status: 1.0}


@pytest.mark.parametrize("status", STATUSES)
def test_the_duration_is_observed_for_each_status(
    registry_dir: Path, record: Recorder, clock: FakeClock, status: str
) -> None:
    execution = record.started(Started(JOB, "1"))
    assert execution is not None
    clock.advance(2.25)
    record.ended(execution, Ended(status))
    sample = readings.samples(registry_dir, "jobs_duration_seconds")[LABELS]
    assert (sum(sample.buckets), sample.sum) == (1.0, 2.25)


def test_a_wall_clock_set_back_does_not_change_durations(
    registry_dir: Path, record: Recorder, clock: FakeClock, wall: FakeClock
) -> None:
    execution = record.started(Started(JOB, "1"))
    assert execution is not None
    clock.advance(2.0)
    wall.advance(-3600.0)
    record.ended(execution, OK)
    assert readings.samples(registry_dir, "jobs_duration_seconds")[LABELS].sum == 2.0


def test_second_end_is_not_counted(registry_dir: Path, record: Recorder) -> None:
    execution = record.started(Started(JOB, "1"))
    assert execution is not None
    record.ended(execution, OK)
    record.ended(execution, Ended("failure"))
    assert jobs(registry_dir) == {"success": 1.0}


def test_end_in_a_forked_child_is_not_counted(
    registry_dir: Path, record: Recorder, monkeypatch: pytest.MonkeyPatch
) -> None:
    execution = record.started(Started(JOB, "1"))
    assert execution is not None
    monkeypatch.setattr(fork_hooks.hooks, "count", fork_hooks.hooks.count + 1)
    record.ended(execution, OK)
    assert jobs(registry_dir) == {}
    assert readings.active(registry_dir) == {LABELS: 1}


def test_an_abandoned_execution_is_left_to_other_processes(registry_dir: Path, record: Recorder) -> None:
    execution = record.started(Started(JOB, "1"))
    assert execution is not None
    record.abandoned(execution)
    record.ended(execution, OK)
    assert jobs(registry_dir) == {}


def test_running_execution_is_active(registry_dir: Path, record: Recorder, wall: FakeClock) -> None:
    record.started(Started(JOB, "1"))
    wall.advance(10.0)
    record.started(Started(JOB, "2"))
    (entry,) = readings.snapshot(registry_dir).active
    assert (entry.values, entry.count, entry.oldest) == (LABELS, 2, 1_700_000_000.0)


def test_ended_execution_is_not_active(registry_dir: Path, record: Recorder) -> None:
    run(record)
    assert readings.active(registry_dir) == {}


def test_the_wait_begins_when_the_job_could_have_run(registry_dir: Path, record: Recorder, wall: FakeClock) -> None:
    record.started(Started(JOB, "1", wall.now - 1.5))
    sample = readings.samples(registry_dir, "jobs_queue_wait_seconds")[LABELS]
    assert (sum(sample.buckets), sample.sum) == (1.0, 1.5)


def test_the_wait_with_a_producer_clock_ahead_is_0(registry_dir: Path, record: Recorder, wall: FakeClock) -> None:
    record.started(Started(JOB, "1", wall.now + 5.0))
    sample = readings.samples(registry_dir, "jobs_queue_wait_seconds")[LABELS]
    assert (sum(sample.buckets), sample.sum) == (1.0, 0.0)


def test_unknown_wait_is_not_observed(registry_dir: Path, record: Recorder) -> None:
    record.started(Started(JOB, "1", None))
    assert readings.counts(registry_dir, "jobs_queue_wait_seconds") == {}


def test_the_last_success_is_the_time_of_its_end(registry_dir: Path, record: Recorder, wall: FakeClock) -> None:
    execution = record.started(Started(JOB, "1"))
    assert execution is not None
    wall.advance(7.0)
    record.ended(execution, OK)
    assert readings.values(registry_dir, "jobs_last_success_timestamp_seconds") == {LABELS: wall.now}


def test_a_failure_does_not_change_the_last_success(registry_dir: Path, record: Recorder) -> None:
    run(record, Ended("failure"))
    assert readings.values(registry_dir, "jobs_last_success_timestamp_seconds") == {}


def test_a_retry_is_counted(registry_dir: Path, record: Recorder) -> None:
    run(record, Ended("retry"))
    assert readings.values(registry_dir, "jobs_retries_total") == {LABELS: 1.0}


@pytest.mark.parametrize("status", [status for status in STATUSES if status != "failure"])
def test_only_a_failure_is_counted_by_exception(registry_dir: Path, record: Recorder, status: str) -> None:
    run(record, Ended(status, Refused()))
    assert readings.values(registry_dir, "jobs_failures_total") == {}


def test_failure_is_counted_by_exception(registry_dir: Path, record: Recorder) -> None:
    run(record, Ended("failure", Refused()))
    assert readings.values(registry_dir, "jobs_failures_total") == {(*LABELS, "Refused"): 1.0}


# ------------------------------------------------------------------ processor time


@pytest.fixture
def metered(writer: Writer, active_settings: Settings) -> Recorder:
    """In each execution the process takes 0.5 seconds, its thread 0.25, its process and ended children 0.125."""
    return Recorder(
        writer,
        active_settings,
        process_cpu=CountingClock(7.0, 0.5),
        thread_cpu=CountingClock(7.0, 0.25),
        family_cpu=CountingClock(7.0, 0.125),
    )


def test_processor_time_in_the_main_thread_is_that_of_the_process(registry_dir: Path, metered: Recorder) -> None:
    run(metered)
    assert readings.values(registry_dir, "jobs_cpu_seconds_total") == {LABELS: 0.5}


def test_processor_time_in_another_thread_is_that_of_the_thread(registry_dir: Path, metered: Recorder) -> None:
    thread = threading.Thread(target=run, args=(metered,))
    thread.start()
    thread.join()
    assert readings.values(registry_dir, "jobs_cpu_seconds_total") == {LABELS: 0.25}


def test_processor_time_is_counted_for_each_status(registry_dir: Path, metered: Recorder) -> None:
    for status in STATUSES:
        run(metered, Ended(status))
    assert readings.values(registry_dir, "jobs_cpu_seconds_total") == {LABELS: 0.5 * len(STATUSES)}


def test_processor_time_among_greenlets_is_not_counted(
    registry_dir: Path, writer: Writer, active_settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    class local:  # noqa: N801 - as gevent's replaces the real one
        pass

    monkeypatch.setattr(threading, "local", local)
    run(Recorder(writer, active_settings))
    assert readings.values(registry_dir, "jobs_cpu_seconds_total") == {}
    assert jobs(registry_dir) == {"success": 1.0}


def test_thread_that_forked_is_the_main_thread_of_its_child(registry_dir: Path, metered: Recorder) -> None:
    def fork() -> None:
        pid = os.fork()
        if pid == 0:
            run(metered)
            os._exit(0)
        os.waitpid(pid, 0)

    thread = threading.Thread(target=fork)
    thread.start()
    thread.join()
    assert readings.values(registry_dir, "jobs_cpu_seconds_total") == {LABELS: 0.5}


def test_processor_time_of_the_job_system_counts_instead(registry_dir: Path, metered: Recorder) -> None:
    run(metered, Ended("success", cpu_seconds=1.75))
    assert readings.values(registry_dir, "jobs_cpu_seconds_total") == {LABELS: 1.75}


def test_processor_time_of_a_lost_execution_counts_when_known(registry_dir: Path, metered: Recorder) -> None:
    metered.lost(Lost(JOB, "1", "failure", cpu_seconds=1.75))
    metered.lost(Lost(JOB, "2", "failure"))
    assert readings.values(registry_dir, "jobs_cpu_seconds_total") == {LABELS: 1.75}


def test_measurements_of_the_job_system_replace_the_recorders_clocks(
    registry_dir: Path, metered: Recorder, clock: FakeClock
) -> None:
    execution = metered.started(Started(JOB, "1", cpu=CPU_OF_CALLER))
    assert execution is not None
    clock.advance(9.0)
    metered.ended(execution, Ended("success", cpu_seconds=1.75, run_seconds=2.5))
    assert readings.values(registry_dir, "jobs_cpu_seconds_total") == {LABELS: 1.75}
    assert readings.samples(registry_dir, "jobs_duration_seconds")[LABELS].sum == 2.5


@pytest.mark.parametrize(
    ("source", "seconds"), [(CPU_OF_JOB, 0.5), (CPU_OF_THREAD, 0.25), (CPU_OF_FAMILY, 0.125), (CPU_OF_CALLER, 2.0)]
)
def test_processor_time_is_that_of_the_event(
    registry_dir: Path, metered: Recorder, source: str, seconds: float
) -> None:
    execution = metered.started(Started(JOB, "1", cpu=source))
    assert execution is not None
    if source == CPU_OF_CALLER:
        assert execution.cpu == 0.0
        execution.cpu += 2.0
    metered.ended(execution, OK)
    assert readings.values(registry_dir, "jobs_cpu_seconds_total") == {LABELS: seconds}


@pytest.mark.parametrize("cpu", [-1.0, float("nan"), float("inf")])
def test_impossible_processor_time_is_dropped_and_the_rest_counted(
    registry_dir: Path, record: Recorder, cpu: float
) -> None:
    run(record)
    before = readings.values(registry_dir, "jobs_cpu_seconds_total")
    run(record, Ended("success", cpu_seconds=cpu))
    assert readings.values(registry_dir, "jobs_cpu_seconds_total") == before
    assert jobs(registry_dir) == {"success": 2.0}
    assert sum(record.writer.take_dropped_updates().values()) == 1


# ------------------------------------------------------------------ targets, stages, items


def test_a_target_is_shown_before_the_first_end(registry_dir: Path, record: Recorder) -> None:
    execution = record.started(Started(JOB, "1"))
    assert execution is not None
    record.set_target(execution, 2.0)
    assert readings.values(registry_dir, "jobs_target_duration_seconds") == {LABELS: 2.0}
    assert readings.samples(registry_dir, "jobs_within_target_total")[LABELS].value == 0.0


@pytest.mark.parametrize(
    ("status", "seconds", "within"),
    [("success", 2.0, 1.0), ("success", 2.5, 0.0), *((status, 1.0, 0.0) for status in STATUSES if status != "success")],
)
def test_only_a_success_in_time_is_within_its_target(
    registry_dir: Path, record: Recorder, clock: FakeClock, status: str, seconds: float, within: float
) -> None:
    execution = record.started(Started(JOB, "1"))
    assert execution is not None
    record.set_target(execution, 2.0)
    clock.advance(seconds)
    record.ended(execution, Ended(status))
    assert readings.samples(registry_dir, "jobs_within_target_total")[LABELS].value == within


def test_execution_without_a_target_has_no_target_metrics(registry_dir: Path, record: Recorder) -> None:
    run(record)
    assert readings.samples(registry_dir, "jobs_within_target_total") == {}
    assert readings.samples(registry_dir, "jobs_target_duration_seconds") == {}


def test_stages_and_items_are_those_of_the_job(registry_dir: Path, record: Recorder) -> None:
    execution = record.started(Started(JOB, "1"))
    assert execution is not None
    record.stage(execution, "parse", 1.5)
    record.add_items(execution, 3)
    assert readings.samples(registry_dir, "jobs_stage_duration_seconds")[(*LABELS, "parse")].sum == 1.5
    assert readings.values(registry_dir, "jobs_items_processed_total") == {LABELS: 3.0}


# ------------------------------------------------------------------ error types


@pytest.mark.parametrize(
    ("error", "name"),
    [
        (Refused("x"), "Refused"),
        ("package.module.WorkerLost", "WorkerLost"),
        ("WorkerLost", "WorkerLost"),
        (None, "unknown"),
        ("", "unknown"),
        ("package.", "unknown"),
    ],
)
def test_error_is_named_by_its_class(record: Recorder, error: BaseException | str | None, name: str) -> None:
    assert record.error_type(error) == name


@pytest.mark.parametrize("error", [Refused(), RefusedHarder(), f"{__name__}.Refused"])
def test_mapping_names_a_class_and_its_subclasses(writer: Writer, error: BaseException | str) -> None:
    assert recorder_with(writer, error_types={Refused: "refused"}).error_type(error) == "refused"


def test_nearest_class_of_the_mapping_counts(writer: Writer) -> None:
    mapping = {Refused: "refused", RefusedHarder: "harder", Exception: "any"}
    assert recorder_with(writer, error_types=mapping).error_type(RefusedHarder()) == "harder"


def test_long_error_name_is_cut(record: Recorder) -> None:
    assert len(record.error_type(type("E" * 300, (Exception,), {})())) == 256


# ------------------------------------------------------------------ ignored and withdrawn jobs


@pytest.mark.parametrize("pattern", ["app.resize", "app.*", "*", "app.re?ize"])
def test_ignored_job_type_is_not_recorded(registry_dir: Path, writer: Writer, pattern: str) -> None:
    record = recorder_with(writer, ignore=pattern)
    assert record.started(Started(JOB, "1")) is None
    record.published(Published(JOB))
    record.withdrawn(Withdrawn(JOB, "revoked"))
    assert record.lost(Lost(JOB, "1", "failure", process_died=True)) is False
    assert list(registry_dir.iterdir()) == []


def test_ignore_patterns_are_case_sensitive(writer: Writer) -> None:
    assert recorder_with(writer, ignore="APP.*").ignores("app.resize") is False


@pytest.mark.parametrize("reason", WITHDRAWN_REASONS)
def test_withdrawn_job_is_counted_by_its_reason_alone(registry_dir: Path, record: Recorder, reason: str) -> None:
    record.withdrawn(Withdrawn(JOB, reason))
    assert readings.values(registry_dir, "jobs_withdrawn_total") == {(*LABELS, reason): 1.0}
    assert jobs(registry_dir) == {}


def test_published_job_is_counted(registry_dir: Path, record: Recorder) -> None:
    record.published(Published(JOB))
    assert readings.values(registry_dir, "jobs_published_total") == {LABELS: 1.0}


def test_long_job_type_is_cut(registry_dir: Path, record: Recorder) -> None:
    run(record, job=Job("celery", "x" * 300, "q"))
    ((values, _),) = readings.values(registry_dir, "jobs_total").items()
    assert len(values[1]) == 256


# ------------------------------------------------------------------ one process reports for another


def test_execution_of_a_dead_process_is_counted_with_its_duration(
    registry_dir: Path, record: Recorder, other_worker: Recorder, wall: FakeClock
) -> None:
    other_worker.started(Started(JOB, "1"))
    die(other_worker.writer)
    wall.advance(4.0)
    assert record.lost(Lost(JOB, "1", "failure", "WorkerLost", process_died=True)) is True
    assert jobs(registry_dir) == {"failure": 1.0}
    assert readings.samples(registry_dir, "jobs_duration_seconds")[LABELS].sum == 4.0
    assert readings.values(registry_dir, "jobs_failures_total") == {(*LABELS, "WorkerLost"): 1.0}
    assert readings.values(registry_dir, "jobs_worker_processes_lost_total") == {("celery",): 1.0}


def test_execution_that_had_ended_is_not_counted_again(
    registry_dir: Path, record: Recorder, other_worker: Recorder
) -> None:
    run(other_worker)
    die(other_worker.writer)
    assert record.lost(Lost(JOB, "1", "failure")) is False
    assert jobs(registry_dir) == {"success": 1.0}
    assert readings.values(registry_dir, "jobs_worker_processes_lost_total") == {}


def test_process_that_died_after_its_execution_had_ended_is_counted_once(
    registry_dir: Path, record: Recorder, other_worker: Recorder
) -> None:
    run(other_worker)
    die(other_worker.writer)
    for _ in range(3):
        record.process_lost(JOB, "1")
    assert jobs(registry_dir) == {"success": 1.0}
    assert readings.values(registry_dir, "jobs_worker_processes_lost_total") == {("celery",): 1.0}


def test_process_that_died_in_its_execution_is_counted_with_the_execution(
    registry_dir: Path, record: Recorder, other_worker: Recorder
) -> None:
    other_worker.started(Started(JOB, "1"))
    die(other_worker.writer)
    record.process_lost(JOB, "1")
    assert readings.values(registry_dir, "jobs_worker_processes_lost_total") == {}
    record.lost(Lost(JOB, "1", "failure", process_died=True))
    record.process_lost(JOB, "1")
    assert readings.values(registry_dir, "jobs_worker_processes_lost_total") == {("celery",): 1.0}


def test_each_run_of_a_job_may_lose_its_process(
    registry_dir: Path, record: Recorder, other_worker: Recorder, wall: FakeClock
) -> None:
    for _ in range(2):
        run(other_worker)
        wall.advance(1.0)
        record.process_lost(JOB, "1")
    assert readings.values(registry_dir, "jobs_worker_processes_lost_total") == {("celery",): 2.0}


def test_process_of_an_unknown_or_ignored_job_is_not_counted(registry_dir: Path, writer: Writer) -> None:
    record = recorder_with(writer, ignore="app.ignored")
    run(record)
    record.process_lost(Job("celery", "app.ignored", "q"), "1")
    record.process_lost(JOB, "another")
    assert readings.values(registry_dir, "jobs_worker_processes_lost_total") == {}


def test_a_lost_execution_is_counted_once_for_all_reports(
    registry_dir: Path, record: Recorder, other_worker: Recorder, wall: FakeClock
) -> None:
    other_worker.started(Started(JOB, "1"))
    die(other_worker.writer)
    reports = [record.lost(Lost(JOB, "1", "failure")) for _ in range(3)]
    wall.advance(30.0)
    assert [*reports, record.lost(Lost(JOB, "1", "failure"))] == [True, False, False, False]
    assert jobs(registry_dir) == {"failure": 1.0}


def test_an_execution_without_a_journal_entry_is_counted_without_a_duration(
    registry_dir: Path, record: Recorder
) -> None:
    assert record.lost(Lost(JOB, "1", "failure")) is True
    assert record.lost(Lost(JOB, "1", "failure")) is False
    assert readings.values(registry_dir, "jobs_duration_unknown_total") == {LABELS: 1.0}
    readings.assert_durations_add_up(registry_dir)


def test_an_execution_with_an_unknown_end_has_no_duration(
    registry_dir: Path, record: Recorder, other_worker: Recorder
) -> None:
    other_worker.started(Started(JOB, "1"))
    die(other_worker.writer)
    assert record.lost(Lost(JOB, "1", "failure", run_time_known=False)) is True
    assert readings.values(registry_dir, "jobs_duration_unknown_total") == {LABELS: 1.0}
    assert readings.counts(registry_dir, "jobs_duration_seconds") == {}


def test_a_running_execution_reported_abandoned_is_not_counted(
    registry_dir: Path, record: Recorder, other_worker: Recorder
) -> None:
    execution = other_worker.started(Started(JOB, "1"))
    assert execution is not None
    assert record.lost(Lost(JOB, "1", "failure", run_time_known=False)) is False
    other_worker.ended(execution, OK)
    assert jobs(registry_dir) == {"success": 1.0}


def test_a_rerun_of_a_lost_execution_is_a_separate_one(
    registry_dir: Path, record: Recorder, other_worker: Recorder, wall: FakeClock
) -> None:
    other_worker.started(Started(JOB, "1"))
    die(other_worker.writer)
    wall.advance(1.0)
    run(record)
    assert record.lost(Lost(JOB, "1", "failure")) is True
    assert jobs(registry_dir) == {"success": 1.0, "failure": 1.0}


def test_an_execution_is_found_by_its_system_and_id(record: Recorder, other_worker: Recorder, wall: FakeClock) -> None:
    assert record.find_execution("celery", "1") == ([], [])
    run(other_worker)
    wall.advance(60.0)
    other_worker.started(Started(JOB, "1"))
    entries, unended = record.find_execution("celery", "1")
    assert [(entry.start, entry.running) for entry in entries] == [(wall(), True), (wall() - 60.0, False)]
    assert unended == entries[:1]
    die(other_worker.writer)
    _, unended = record.find_execution("celery", "1")
    assert [entry.lost for entry in unended] == [True]
    assert record.find_execution("other", "1") == ([], [])


def test_reporting_a_lost_execution_leaves_nothing_active(
    registry_dir: Path, record: Recorder, other_worker: Recorder
) -> None:
    other_worker.started(Started(JOB, "1"))
    die(other_worker.writer)
    record.lost(Lost(JOB, "1", "failure"))
    assert readings.active(registry_dir) == {}


def unresolved(registry_dir: Path, wall: FakeClock) -> int:
    with contextlib.closing(SnapshotReader(str(registry_dir), wall)) as reader:
        return sum(entry.unresolved for entry in reader.read().active)


def test_a_lost_execution_is_unresolved_until_it_is_reported(
    registry_dir: Path, record: Recorder, other_worker: Recorder, wall: FakeClock
) -> None:
    run(record, execution_id="0")
    other_worker.started(Started(JOB, "1", None))
    other_worker.started(Started(JOB, "2", None))
    die(other_worker.writer)
    assert unresolved(registry_dir, wall) == 2
    assert record.lost(Lost(JOB, "1", "failure"))
    assert record.lost(Lost(JOB, "1", "failure")) is False
    assert unresolved(registry_dir, wall) == 1
    for number in range(200):  # overwrites the note of the end
        run(record, execution_id=f"later {number}")
    assert unresolved(registry_dir, wall) == 1
    assert record.lost(Lost(JOB, "1", "failure")) is False


def test_an_execution_counted_under_another_id_is_resolved(
    registry_dir: Path, record: Recorder, other_worker: Recorder, wall: FakeClock
) -> None:
    run(record, execution_id="0")
    other_worker.started(Started(JOB, "1", None))
    die(other_worker.writer)
    record.counted_elsewhere(JOB.system, "1")
    assert unresolved(registry_dir, wall) == 0


def test_a_counted_process_is_not_counted_again_after_its_execution_was_marked(
    registry_dir: Path, record: Recorder, other_worker: Recorder
) -> None:
    other_worker.started(Started(JOB, "1", None))
    die(other_worker.writer)
    record.lost(Lost(JOB, "1", "failure", process_died=True))
    record.process_lost(JOB, "1")
    assert sum(readings.values(registry_dir, "jobs_worker_processes_lost_total").values()) == 1


def test_job_id_of_an_execution_is_in_the_journal(registry_dir: Path, record: Recorder) -> None:
    record.started(Started(JOB, "1:2", job_id="1"))
    record.started(Started(JOB, "the id"))
    record.started(Started(JOB, 77))
    assert sorted(each.job_id for each in readings.snapshot(registry_dir).running) == ["", "1", "the id"]


def test_loss_without_a_dead_process_counts_no_process(registry_dir: Path, record: Recorder) -> None:
    record.lost(Lost(JOB, "1", "revoked"))
    assert readings.values(registry_dir, "jobs_worker_processes_lost_total") == {}


def test_same_name_in_another_system_is_another_execution(
    registry_dir: Path, record: Recorder, other_worker: Recorder
) -> None:
    run(other_worker)
    assert record.lost(Lost(Job("rq", "f", "q"), "1", "failure")) is True


# ------------------------------------------------------------------ dropped updates and suppressed errors


def test_suppressed_errors_are_shown(registry_dir: Path, record: Recorder, clock: FakeClock) -> None:
    for _ in range(3):
        guard.count("somewhere")
    record.started(Started(JOB, "1"))
    assert readings.values(registry_dir, "jobmetrics_internal_errors_total") == {("somewhere",): 3.0}


def test_dropped_updates_are_shown_by_reason_and_metric(registry_dir: Path, record: Recorder) -> None:
    record.writer.drop("not finite", "m")
    record.started(Started(JOB, "1"))
    assert readings.values(registry_dir, "jobmetrics_dropped_updates_total") == {("not finite", "m"): 1.0}


def test_dropped_updates_are_checked_once_a_second(registry_dir: Path, record: Recorder, clock: FakeClock) -> None:
    record.started(Started(JOB, "1"))
    record.writer.drop("x", "m")
    clock.advance(FLUSH_INTERVAL / 2)
    record.started(Started(JOB, "2"))
    assert readings.values(registry_dir, "jobmetrics_dropped_updates_total") == {}
    clock.advance(FLUSH_INTERVAL / 2)
    record.started(Started(JOB, "3"))
    assert readings.values(registry_dir, "jobmetrics_dropped_updates_total") == {("x", "m"): 1.0}


def test_totals_and_ratios_stay_exact_beyond_the_cap(registry_dir: Path) -> None:
    register_system("rq")
    settings = load({}, dir=registry_dir, max_series=300)
    record = Recorder(Writer(settings), settings)
    for number in range(400):
        run(record, Ended("failure" if number % 4 == 0 else "success"), Job("rq", f"job{number}", "q"), str(number))
    found = readings.values(registry_dir, "jobs_total")
    die(record.writer)
    assert sum(number for values, number in found.items() if values[3] == "failure") == 100.0
    assert sum(number for values, number in found.items() if values[3] == "success") == 300.0
    assert ("rq", OVERFLOW, OVERFLOW, "failure") in found
    assert len(record._jobs) <= 300


# ------------------------------------------------------------------ the recorder of the process


def test_process_has_one_recorder(active_settings: Settings) -> None:
    assert recorder.default() is recorder.default()


def test_recorder_follows_the_active_settings(active_settings: Settings, tmp_path: Path) -> None:
    from jobmetrics import settings

    first = recorder.default()
    settings.configure(dir=tmp_path / "other")
    assert recorder.default() is not first
    assert recorder.default().writer.directory.path == str(tmp_path / "other")


def test_a_process_with_bad_settings_records(monkeypatch: pytest.MonkeyPatch, registry_dir: Path) -> None:
    monkeypatch.setenv("JOBMETRICS_DIR", str(registry_dir))
    monkeypatch.setenv("JOBMETRICS_MAX_SERIES", "many")
    execution = recorder.default().started(Started(JOB, "1"))
    assert execution is not None
    recorder.default().ended(execution, OK)
    assert jobs(registry_dir) == {"success": 1.0}
