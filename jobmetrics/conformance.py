"""The truth table of how jobs end, for the tests of a job system's integration.

A test performs a case with its job system, and `check` compares the counts with the case:

    @pytest.mark.parametrize("case", cases("success", "failure", "retry", "killed"), ids=str)
    def test_truth_table(case, worker):
        check(case, lambda: worker.do(case.name), system="spool", directory=worker.directory, error="Broken")

Reading a registry needs the extra `jobmetrics[exporter]`. No other job of the system may run at the same time.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from jobmetrics import families as f
from jobmetrics.errors import DirectoryMissing
from jobmetrics.events import FAILURE, IGNORED, REJECTED, RETRY, REVOKED, SUCCESS
from jobmetrics.families import Family
from jobmetrics.registry.read import RunningJobs, Sample, Snapshot, SnapshotReader

__all__ = ["CASES", "Case", "cases", "check", "check_running"]

_PAUSE = 0.02  # seconds between two readings

Counts = Counter[tuple[str, ...]]


@dataclass(frozen=True)
class Case:
    """One way in which a job can end, and what it adds to the counters.

    does: what the test has to do. ends: executions by status. withdrawn: jobs that never started, by reason. lost:
    worker processes that died.
    """

    name: str
    does: str
    ends: Mapping[str, int] = field(default_factory=dict)
    withdrawn: Mapping[str, int] = field(default_factory=dict)
    lost: int = 0

    def __str__(self) -> str:
        return self.name


CASES = (
    Case("success", "send a job that returns", {SUCCESS: 1}),
    Case("failure", "send a job that raises", {FAILURE: 1}),
    Case("retry", "send a job that asks to run again, and then returns", {RETRY: 1, SUCCESS: 1}),
    Case("ignored", "send a job that asks to be ignored", {IGNORED: 1}),
    Case("rejected", "send a job that refuses its message", {REJECTED: 1}),
    Case("revoked", "send a job, and have an operator end it while it runs", {REVOKED: 1}),
    Case("killed", "send a job, and kill its worker process while it runs", {FAILURE: 1}, lost=1),
    Case("killed after its end", "send a job, and kill its worker process after it has returned", {SUCCESS: 1}, lost=1),
    Case("expired", "send a job that has expired", withdrawn={"expired": 1}),
    Case("revoked before its start", "send a job, and have an operator withdraw it", withdrawn={"revoked": 1}),
    Case("unknown", "send a job that names no function of the worker", withdrawn={"unknown": 1}),
)


def cases(*names: str) -> list[Case]:
    """Select the cases that apply to a job system.

    Args:
        names: The names of the cases.

    Raises:
        KeyError: A name is not in the table.
    """
    by_name = {case.name: case for case in CASES}
    return [by_name[name] for name in names]


def check(
    case: Case, act: Callable[[], object], *, system: str, directory: str, error: str = "", timeout: float = 60.0
) -> None:
    """Perform a case, and check that the counters rise by exactly the counts of the case.

    It also checks that each end has a run time or is counted in `jobs_duration_unknown_total`, that each execution has
    at most one wait, that no job is active afterwards, and that failures have this error.

    Args:
        case: The case.
        act: Performs it. It may return before the job has ended.
        system: The name that the integration registered.
        directory: The registry directory of its workers.
        error: The error_type of the failure; empty to ignore it.
        timeout: Seconds to wait for the counts.

    Raises:
        AssertionError: The counts differ from the case.
    """
    before = _counts(directory, system)
    act()
    expected = _expected(case, error)

    def is_reached() -> bool:
        added = _counts(directory, system)
        added.subtract(before)
        return all(added[key] >= count for key, count in expected.items()) and not _active(directory, system)

    _wait(is_reached, timeout)
    added = _counts(directory, system)
    added.subtract(before)
    measured, unknown = added.pop(("measured",), 0), added.pop(("not measured",), 0)
    waits = added.pop(("waited",), 0)
    if not error:
        added = Counter({key: count for key, count in added.items() if key[0] != "failed"})
    added = Counter({key: count for key, count in added.items() if count})
    _require(added == expected, f"{case}: counted {dict(added)}, not {dict(expected)}")
    ends = sum(case.ends.values())
    _require(measured + unknown == ends, f"{case}: {ends} executions ended, {measured} have a run time, {unknown} none")
    _require(waits <= ends, f"{case}: {waits} waits of {ends} executions")
    left = _active(directory, system)
    _require(not left, f"{case}: {left} jobs are still active")


def check_running(
    start: Callable[[], object],
    release: Callable[[], object],
    *,
    system: str,
    directory: str,
    timeout: float = 60.0,
) -> None:
    """Start a job, check that it is active while it runs, release it, and check its run time.

    Args:
        start: Sends a job that runs until it is released.
        release: Makes the job return.
        system: The name that the integration registered.
        directory: The registry directory of its workers.
        timeout: Seconds to wait for each change.

    Raises:
        AssertionError: The job is not active while it runs, is active afterwards, or has a wrong run time.
    """
    sent_at, seconds = time.time(), _seconds(directory, system)

    def act() -> None:
        start()
        _wait(lambda: _active(directory, system) == 1, timeout)
        seen = time.perf_counter()
        _require(_active(directory, system) == 1, "a running job is not active")
        oldest = _oldest(directory, system)
        _require(oldest is not None and sent_at <= oldest <= time.time(), f"a job sent at {sent_at} began at {oldest}")
        held.append(time.perf_counter() - seen)
        release()

    held: list[float] = []
    check(CASES[0], act, system=system, directory=directory, timeout=timeout)
    took, most = _seconds(directory, system) - seconds, time.time() - sent_at
    _require(
        held[0] <= took <= most, f"a job that ran for {held[0]:.3f} to {most:.3f} s has a run time of {took:.3f} s"
    )


def _expected(case: Case, error: str) -> Counts:
    expected: Counts = Counter({("ended", status): count for status, count in case.ends.items()})
    expected.update({("withdrawn", reason): count for reason, count in case.withdrawn.items()})
    expected.update({("retried",): case.ends.get(RETRY, 0), ("lost",): case.lost})
    if error:
        expected["failed", error] = case.ends.get(FAILURE, 0)
    return Counter({key: count for key, count in expected.items() if count})


_COUNTED: tuple[tuple[str, Family], ...] = (
    ("ended", f.JOBS),
    ("withdrawn", f.JOBS_WITHDRAWN),
    ("failed", f.JOBS_FAILURES),
    ("retried", f.JOBS_RETRIES),
    ("lost", f.JOBS_WORKER_PROCESSES_LOST),
    ("measured", f.JOBS_DURATION),
    ("not measured", f.JOBS_DURATION_UNKNOWN),
    ("waited", f.JOBS_QUEUE_WAIT),
)


def _counts(directory: str, system: str) -> Counts:
    """Return a system's counts, by the kind of the count and the values of labels other than a job's."""
    words = {family.name: word for word, family in _COUNTED}
    found: Counts = Counter()
    for family, samples in _families(directory):
        if family.name in words:
            for sample in samples:
                if sample.values[0] == system:
                    key = (words[family.name], *sample.values[len(f.JOB_LABELS) :])
                    found[key] += int(sum(sample.buckets) if family.buckets else sample.value)
    return found


def _seconds(directory: str, system: str) -> float:
    """Return the run time of all executions of a system, in seconds."""
    return sum(
        sample.sum
        for family, samples in _families(directory)
        if family.name == f.JOBS_DURATION.name
        for sample in samples
        if sample.values[0] == system
    )


def _active(directory: str, system: str) -> int:
    return sum(entry.count for entry in _executions(directory, system))


def _oldest(directory: str, system: str) -> float | None:
    return min((entry.oldest for entry in _executions(directory, system) if entry.oldest is not None), default=None)


def _families(directory: str) -> Iterable[tuple[Family, Sequence[Sample]]]:
    found = _read(directory)
    return () if found is None else found.families


def _executions(directory: str, system: str) -> list[RunningJobs]:
    found = _read(directory)
    return [] if found is None else [entry for entry in found.active if entry.values[0] == system]


def _read(directory: str) -> Snapshot | None:
    """Read the directory; None before the first worker creates it."""
    reader = SnapshotReader(directory)
    try:
        return reader.read()
    except DirectoryMissing:
        return None
    finally:
        reader.close()


def _wait(condition: Callable[[], bool], seconds: float) -> None:
    """Wait for a condition or the timeout in seconds. The caller compares the counts in both cases."""
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(_PAUSE)


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise AssertionError(message)
