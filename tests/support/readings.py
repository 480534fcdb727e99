"""The contents of a registry directory, as the exporter reads it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from jobmetrics.registry.directory import Directory
from jobmetrics.registry.read import Sample, Snapshot, SnapshotReader


@contextmanager
def reader(path: Path) -> Iterator[SnapshotReader]:
    """A reader of a directory of any owner, closed at the end."""
    owner = path.lstat().st_uid if path.exists() else None
    opened = SnapshotReader(Directory(str(path), owner=owner))
    try:
        yield opened
    finally:
        opened.close()


def snapshot(path: Path) -> Snapshot:
    """A snapshot of the directory."""
    with reader(path) as opened:
        return opened.read()


def samples(path: Path, name: str) -> dict[tuple[str, ...], Sample]:
    """A family's series by label values; empty without such a family."""
    return next(
        (
            {sample.values: sample for sample in found}
            for family, found in snapshot(path).families
            if family.name == name
        ),
        {},
    )


def values(path: Path, name: str) -> dict[tuple[str, ...], float]:
    """A counter's or gauge's values by label values, without series that are 0."""
    return {labels: sample.value for labels, sample in samples(path, name).items() if sample.value}


def counts(path: Path, name: str) -> dict[tuple[str, ...], float]:
    """A histogram's counts by label values."""
    return {labels: sum(sample.buckets) for labels, sample in samples(path, name).items() if sum(sample.buckets)}


def active(path: Path) -> dict[tuple[str, ...], int]:
    """Active jobs by label values, without those that are 0."""
    return {entry.values: entry.count for entry in snapshot(path).active if entry.count}


def assert_durations_add_up(path: Path) -> None:
    """Assert that each counted execution has a duration, or is counted as having none."""
    ended = sum(values(path, "jobs_total").values())
    known = sum(counts(path, "jobs_duration_seconds").values())
    assert ended == known + sum(values(path, "jobs_duration_unknown_total").values())


def until(condition: Callable[[], bool], what: str, seconds: float = 60.0) -> None:
    """Wait for a condition; the limit is for hung tests."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"still waiting for: {what}"
        time.sleep(0.02)
