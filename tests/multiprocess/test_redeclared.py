"""Two definitions of one family in one directory, as during a rolling deploy: no count is invented or flaps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from jobmetrics.registry.read.snapshot import SnapshotReader
from tests.multiprocess.support import record, worker
from tests.support import readings

Settings = dict[str, dict[str, tuple[float, ...]]]

DURATION = "jobs_duration_seconds"
OLD: Settings = {"buckets": {DURATION: (0.1, 1.0, 10.0)}}
FINER: Settings = {"buckets": {DURATION: (0.1, 0.5, 1.0, 10.0)}}
OTHER: Settings = {"buckets": {DURATION: (0.2, 2.0, 20.0)}}


class Increase:
    """Prometheus' increase() of a histogram's count and buckets over all scrapes: a fall counts as a restart from 0."""

    def __init__(self, reader: SnapshotReader) -> None:
        self._reader = reader
        self._last: dict[object, float] = {}
        self.of: dict[object, float] = {}
        self.falls = 0
        self.bounds: list[tuple[float, ...]] = []

    def scrape(self) -> None:
        now: dict[object, float] = {}
        for family, samples in self._reader.read().families:
            if family.name != DURATION:
                continue
            if self.bounds[-1:] != [family.buckets]:
                self.bounds.append(family.buckets)
            for sample in samples:
                now["count"] = sum(sample.buckets)
                for n, bound in enumerate(family.buckets):
                    now[bound] = sum(sample.buckets[: n + 1])
        for name, value in now.items():
            before = self._last.get(name, 0.0)
            self.falls += value < before
            self.of[name] = self.of.get(name, 0.0) + (value - before if value >= before else value)
        self._last = now


def deploy(path: Path, before: Settings, after: Settings, scrape: Callable[[], None]) -> None:
    """Run 200 executions, 190 of them with the old definition; processes alternate, with a scrape after each."""
    for _ in range(10):
        for settings, executions in ((before, 19), (after, 1)):
            record(path, *[("job",)] * executions, **settings)
            scrape()


@pytest.mark.parametrize(("before", "after"), [(OLD, FINER), (FINER, OLD)], ids=["finer", "coarser"])
def test_nested_buckets_are_counted_together(registry_dir: Path, before: Settings, after: Settings) -> None:
    with readings.reader(registry_dir) as reader:
        seen = Increase(reader)
        deploy(registry_dir, before, after, seen.scrape)
        assert seen.of["count"] == 200
        assert all(count <= 200 for count in seen.of.values())
        assert (seen.falls, len(seen.bounds)) == (0, 2)
        assert reader.read().superseded == 0


def test_other_buckets_win_once_and_stay(registry_dir: Path) -> None:
    with readings.reader(registry_dir) as reader:
        seen = Increase(reader)
        deploy(registry_dir, OLD, OTHER, seen.scrape)
        assert seen.of["count"] == 19 + 10, "the old buckets are shown until a new one is recorded"
        assert len(seen.bounds) == 2
        assert reader.read().superseded == 1


def test_a_worker_with_the_older_definition_keeps_using_it(registry_dir: Path) -> None:
    with (
        readings.reader(registry_dir) as reader,
        worker(registry_dir, **OLD) as old,
        worker(registry_dir, **FINER) as new,
    ):
        seen = Increase(reader)
        for _ in range(3):
            for each in (old, new):
                each.ask("job", times=2)
                each.ask("later")
                seen.scrape()
        assert (seen.of["count"], seen.falls) == (12, 0)
        for each in (old, new):
            each.leave()
