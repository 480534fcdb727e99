"""Invariant 9: the directory never holds more than max_series; updates beyond that are counted under __other__."""

from __future__ import annotations

from collections import Counter as Tally
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from jobmetrics.events import STATUSES, SUCCESS, Ended, Job, Started
from jobmetrics.families import OVERFLOW, SPARE_SYSTEMS, register_system
from tests.multiprocess.support import Worker, child, children, record, slot_files, worker
from tests.support import readings
from tests.support.repetitions import sizes

PROCESSES = 8
LIMIT = 1000
GROWTH = 8 << 20  # bytes of memory that a process may take: an eighth of what it would need without the cap


def series_of(path: Path) -> dict[str, int]:
    return {family.name: len(found) for family, found in readings.snapshot(path).families}


# ---------------------------------------------------------------- hostile label values


def _run_jobs(path: Path, number: int, times: int, pipe: Connection) -> None:
    """Run as many job types as executions, with every outcome."""
    for system in ("celery", "rq"):
        register_system(system)
    one = Worker(path, max_series=LIMIT)
    memory = 0
    for n in range(times):
        if n == times // 4:
            memory = one.resident()
        job = Job("celery" if n % 2 else "rq", f"type {number}-{n}", f"queue {n % 5}")
        execution = one.recorder.started(Started(job, f"{number}-{n}", ready_at=0.0))
        assert execution is not None
        status = STATUSES[n % len(STATUSES)]
        one.recorder.ended(execution, Ended(status, "app.Broken" if status == "failure" else None))
    grown = one.resident() - memory
    one.later()
    one.job("last")  # shows the updates dropped so far
    pipe.send((True, grown))


@sizes("times", 8_000, 100_000)
def test_totals_stay_exact_beyond_the_cap(times: int, registry_dir: Path) -> None:
    each = times // PROCESSES // 2 * 2  # the two systems run the same number of jobs
    times = each * PROCESSES
    runs = [lambda pipe, n=n: _run_jobs(registry_dir, n, each, pipe) for n in range(PROCESSES)]
    with children(runs) as all_:
        grown = [one.answer() for one in all_]
        for one in all_:
            one.join()
    snapshot = readings.snapshot(registry_dir)
    assert snapshot.limit == LIMIT
    assert LIMIT // 2 < snapshot.series <= LIMIT
    assert all(count <= LIMIT // 2 + 20 for count in series_of(registry_dir).values())

    expected = Tally(STATUSES[n % len(STATUSES)] for n in range(each) for _ in range(PROCESSES))
    expected[SUCCESS] += PROCESSES
    by_status: Tally[str] = Tally()
    by_system: Tally[str] = Tally()
    overflow = 0.0
    for (system, job_type, queue, status), count in readings.values(registry_dir, "jobs_total").items():
        by_status[status] += int(count)
        by_system[system] += int(count)
        if job_type == OVERFLOW:
            assert queue == OVERFLOW
            overflow += count
    assert by_status == expected
    assert by_system == {"celery": times // 2, "rq": times // 2, "python": PROCESSES}
    assert overflow > times / 2
    failures = readings.values(registry_dir, "jobs_failures_total")
    assert sum(failures.values()) == expected["failure"]
    assert {labels for labels in failures if OVERFLOW in labels} == {
        (system, OVERFLOW, OVERFLOW, OVERFLOW) for system in ("celery", "rq")
    } & failures.keys()
    assert sum(readings.counts(registry_dir, "jobs_queue_wait_seconds").values()) == times
    readings.assert_durations_add_up(registry_dir)
    assert sum(readings.values(registry_dir, "jobmetrics_dropped_series_total").values()) > times
    assert readings.active(registry_dir) == {}

    assert max(grown) < GROWTH
    assert len(slot_files(registry_dir)) <= PROCESSES
    assert (registry_dir / "index").stat().st_size < LIMIT * 300
    assert all((registry_dir / name).stat().st_size < LIMIT * 300 for name in slot_files(registry_dir))


@sizes("times", 4_000, 100_000)
def test_user_labels_are_capped_too(times: int, registry_dir: Path) -> None:
    def run(number: int, pipe: Connection) -> None:
        one = Worker(registry_dir, max_series=LIMIT)
        memory = 0
        for n in range(times // PROCESSES):
            if n == times // PROCESSES // 4:
                memory = one.resident()
            one.hit(f"{number}-{n}", 3.0)
            one.measure(1.5, f"{number}-{n}")
        pipe.send((True, one.resident() - memory))

    with children([lambda pipe, n=n: run(n, pipe) for n in range(PROCESSES)]) as all_:  # type: ignore[misc]
        assert max(one.answer() for one in all_) < GROWTH
        for one in all_:
            one.join()
    hits, measured = readings.values(registry_dir, "hits_total"), readings.counts(registry_dir, "sizes")
    assert sum(hits.values()) == 3.0 * times
    assert sum(measured.values()) == times
    assert hits[OVERFLOW,] > 0
    assert measured[OVERFLOW,] > 0
    assert readings.snapshot(registry_dir).series <= LIMIT
    assert len(hits) <= LIMIT // 2 + 1
    assert len(measured) <= LIMIT // 2 + 1


# ---------------------------------------------------------------- the rules


def test_series_made_before_the_cap_was_reached_still_count(registry_dir: Path) -> None:
    with worker(registry_dir, max_series=100) as one:
        one.ask("hit", "early")
        for n in range(300):
            one.ask("hit", f"{n}")
        one.ask("hit", "early")
        one.leave()
    record(registry_dir, ("hit", "early"), ("hit", "299"), ("hit", "never seen"), max_series=100)
    values = readings.values(registry_dir, "hits_total")
    assert values["early",] == 3.0
    assert sum(values.values()) == 305.0
    assert ("299",) not in values
    assert readings.snapshot(registry_dir).series <= 100


def test_no_family_takes_more_than_half(registry_dir: Path) -> None:
    """One bad label cannot displace the other families."""
    with worker(registry_dir, max_series=200) as one:
        for n in range(500):
            one.ask("hit", f"{n}")
        one.ask("job", "job")
        one.ask("measure", 1.0, "small")
        one.leave()
    assert series_of(registry_dir)["hits_total"] <= 101
    assert readings.values(registry_dir, "jobs_total") == {("python", "job", "queue", "success"): 1.0}
    assert readings.counts(registry_dir, "sizes") == {("small",): 1.0}


def test_the_first_process_sets_the_cap_of_the_directory(registry_dir: Path) -> None:
    record(registry_dir, ("hit", "first"), max_series=60)
    for limit in (10, 60, 10_000):
        record(registry_dir, *(("hit", f"{limit}-{n}") for n in range(100)), max_series=limit)
    snapshot = readings.snapshot(registry_dir)
    assert snapshot.limit == 60
    assert snapshot.series <= 60
    assert sum(readings.values(registry_dir, "hits_total").values()) == 301.0


@pytest.mark.parametrize("limit", [1, 2, 5, 20, 50, 100])
def test_small_caps_are_enforced(limit: int, registry_dir: Path) -> None:
    """Below the number of overflow series of the built-in metrics, these series still count everything."""
    with worker(registry_dir, max_series=limit) as one:
        for n in range(20):
            one.ask("start", f"{n}", f"type {n}")
            one.ask("end", f"{n}", STATUSES[n % len(STATUSES)], "app.Broken")
            one.ask("hit", f"{n}")
        one.leave()
    by_status: Tally[str] = Tally()
    for labels, count in readings.values(registry_dir, "jobs_total").items():
        by_status[labels[-1]] += int(count)
    assert by_status == Tally(STATUSES[n % len(STATUSES)] for n in range(20))
    readings.assert_durations_add_up(registry_dir)
    built_in_overflow = SPARE_SYSTEMS * (len(STATUSES) + 12)
    assert readings.snapshot(registry_dir).series <= max(limit, built_in_overflow)


def test_overflow_is_counted_as_dropped_series_once_a_process(registry_dir: Path) -> None:
    with worker(registry_dir, max_series=100) as one:
        for n in range(60):
            one.ask("hit", f"{n}", 1.0, 5)
        one.ask("later")
        one.ask("job")
        one.leave()
    held = len([who for (who,) in readings.values(registry_dir, "hits_total") if who != OVERFLOW])
    assert readings.values(registry_dir, "jobmetrics_dropped_series_total") == {(): float(60 - held)}


def test_gauges_beyond_the_cap_show_only_living_processes(registry_dir: Path) -> None:
    """Live gauges of many label values are added up under __other__, and end with their process."""
    with worker(registry_dir, max_series=20) as one:
        one.ask("hit", "all")
        for n in range(40):
            one.ask("level", 1.0, f"{n}")
        assert set(readings.values(registry_dir, "level")) >= {(OVERFLOW,)}
        one.kill()
    assert readings.values(registry_dir, "level") == {}


def test_memory_stays_flat_in_the_reader(registry_dir: Path) -> None:
    def run(pipe: Connection) -> None:
        import psutil

        with readings.reader(registry_dir) as reader:
            memory = 0
            for n in range(200):
                reader.read()
                if n == 50:
                    memory = psutil.Process().memory_info().rss
            pipe.send((True, psutil.Process().memory_info().rss - memory))

    record(registry_dir, *(("measure", 1.0, f"{n}") for n in range(2000)), max_series=LIMIT)
    with child(run) as one:
        assert one.answer() < 2 << 20
        one.join()
