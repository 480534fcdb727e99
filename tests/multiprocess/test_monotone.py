"""Invariant 3: no counter or histogram ever goes backwards, not by one ulp: not across leases, restarts, or files that
cannot be read for a while."""

from __future__ import annotations

import functools
import operator
import os
import random
import shutil
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from jobmetrics.registry.read.snapshot import SnapshotReader
from tests.multiprocess import damaging
from tests.multiprocess.damaging import Damage
from tests.multiprocess.support import Child, Worker, child, children, fork, in_child, serve, slot_files
from tests.support import readings
from tests.support.repetitions import sizes

SERIES = 60
SLOTS = 7

Counts = dict[tuple[object, ...], float]


def counts(reader: SnapshotReader) -> Counts:
    """Every number that may only rise: counters, buckets, counts and sums of non-negative values."""
    found: Counts = {}
    for family, samples in reader.read().families:
        for sample in samples:
            if family.type == "counter":
                found[family.name, sample.values] = sample.value
            elif family.type == "histogram":
                for n, bucket in enumerate(sample.buckets):
                    found[family.name, sample.values, n] = bucket
                found[family.name, sample.values, "count"] = sum(sample.buckets)
                found[family.name, sample.values, "sum"] = sample.sum
    return found


class Watch:
    """Read repeatedly, and fail at the first number that falls or disappears."""

    def __init__(self, reader: SnapshotReader) -> None:
        self._reader = reader
        self._last: Counts = {}
        self.looks = 0

    def look(self, when: str = "") -> Counts:
        now = counts(self._reader)
        for series, before in self._last.items():
            assert series in now, f"{series} is gone {when}"
            assert now[series] >= before, f"{series} fell from {before!r} to {now[series]!r} {when}"
        self._last = now
        self.looks += 1
        return now


class Uneven(Worker):
    """Count amounts that add up differently in another order."""

    def count(self, seed: int, series: int = SERIES) -> None:
        chance = random.Random(seed)
        for n in range(series):
            self.hit(f"{n}", chance.random() * 10 ** chance.randrange(-6, 7))
            self.measure(chance.random() * 10 ** chance.randrange(-3, 4), f"{n}")


def fill(path: Path, seed: int = 0, slots: int = SLOTS) -> None:
    """Make free slots, each with an amount in each series."""
    with children([lambda pipe: serve(Uneven(path), pipe)] * slots) as all_:
        for n, one in enumerate(all_):
            one.ask("count", seed * 1000 + n)
        for one in all_:
            one.leave()


def _one_by_one(amounts: list[float]) -> float:
    """Plain additions: sum() compensates for rounding from Python 3.12 on."""
    return functools.reduce(operator.add, amounts)


def test_the_sum_of_the_amounts_depends_on_their_order(registry_dir: Path) -> None:
    """Without this the tests below could not fail."""
    fill(registry_dir)
    chance = [random.Random(n) for n in range(SLOTS)]
    differ = 0
    for _ in range(SERIES):
        amounts = []
        for one in chance:
            amounts.append(one.random() * 10 ** one.randrange(-6, 7))
            one.random()
            one.randrange(-3, 4)
        differ += _one_by_one(amounts) != _one_by_one([*amounts[3:], *amounts[:3]])
    assert differ > SERIES / 5


@pytest.mark.parametrize("number", range(SLOTS))
@pytest.mark.parametrize("damage", [*damaging.WHOLE_FILE, damaging.cut_in_half, Path.unlink], ids=damaging.named)
def test_a_slot_that_cannot_be_read_for_a_while(damage: Damage, number: int, registry_dir: Path) -> None:
    """The slot's last row replaces it at the same place in the sum; the slot may become readable again."""
    fill(registry_dir)
    file = registry_dir / slot_files(registry_dir)[number]
    with readings.reader(registry_dir) as reader:
        watch = Watch(reader)
        before = watch.look()
        shutil.copy2(file, registry_dir.parent / "kept")
        file.rename(registry_dir.parent / "away")
        shutil.copy2(registry_dir.parent / "kept", file)
        watch.look("when it was replaced by a copy")
        damage(file)
        for _ in range(2):
            assert watch.look("while it was damaged") == before
        if file.is_dir() and not file.is_symlink():
            shutil.rmtree(file)
        elif os.path.lexists(file):
            file.unlink()
        assert watch.look("while it was gone") == before
        (registry_dir.parent / "away").rename(file)
        assert watch.look("when it was back") == before


@pytest.mark.parametrize("number", range(SLOTS))
@pytest.mark.parametrize("damage", [damaging.zero, damaging.fifo, damaging.cut_in_half], ids=damaging.named)
def test_a_slot_that_workers_set_aside_and_make_anew(damage: Damage, number: int, registry_dir: Path) -> None:
    """The old file's counts still count, at the same place in the sum, followed by the new file's."""
    fill(registry_dir)
    with readings.reader(registry_dir) as reader:
        watch = Watch(reader)
        watch.look()
        damage(registry_dir / slot_files(registry_dir)[number])
        watch.look("while it was damaged")
        for seed in range(1, 4):
            fill(registry_dir, seed)
            watch.look("when all slots were leased again")
        assert len(slot_files(registry_dir)) == SLOTS


@sizes("times", 5, 50)
def test_leases_and_restarts(times: int, registry_dir: Path) -> None:
    """Workers start, count, and exit or are killed in random order; read after each step."""
    chance = random.Random(times)
    with readings.reader(registry_dir) as reader:
        fill(registry_dir)
        watch = Watch(reader)
        alive: list[Child] = []
        try:
            for seed in range(times * 10):
                if len(alive) < SLOTS and chance.random() < 0.6:
                    alive.append(fork(lambda pipe: serve(Uneven(registry_dir), pipe)))
                elif alive:
                    one = alive.pop(chance.randrange(len(alive)))
                    one.kill() if chance.random() < 0.5 else one.leave()
                for one in alive:
                    one.ask("count", seed, 10)
                    watch.look()
        finally:
            for one in alive:
                one.end()
    assert watch.looks > times * 5


LOOKS = 50  # readings while writers write


@sizes("times", 3, 40)
def test_a_reader_beside_writers_that_are_killed(times: int, registry_dir: Path) -> None:
    """The reader reads at any step of the writers."""

    def write(_: Connection) -> None:
        one = Uneven(registry_dir)
        seed = os.getpid()
        while True:
            seed += 1
            one.count(seed)

    with readings.reader(registry_dir) as reader:
        fill(registry_dir)
        watch = Watch(reader)
        for _ in range(times):
            with children([write] * 4) as writing:
                readings.until(lambda: readings.snapshot(registry_dir).live == 4, "four writers")
                for _ in range(LOOKS):
                    watch.look()
                for one in writing:
                    one.kill()
            watch.look()


@pytest.mark.parametrize("number", range(SLOTS))
def test_a_restarted_exporter_serves_the_same(number: int, registry_dir: Path) -> None:
    """A reader that has cached a slot's row serves the same as a new reader."""
    fill(registry_dir)
    with readings.reader(registry_dir) as old:
        watch = Watch(old)
        watch.look()
        in_child(lambda: Uneven(registry_dir).count(number))
        last = watch.look()
        for _ in range(3):
            with readings.reader(registry_dir) as new:
                assert counts(new) == last
    with child(lambda pipe: pipe.send((True, _read_in_child(registry_dir)))) as other:
        assert other.answer() == last
        other.join()


def _read_in_child(path: Path) -> Counts:
    with readings.reader(path) as reader:
        return counts(reader)


def test_a_reader_that_closed_its_files_still_reads(registry_dir: Path) -> None:
    fill(registry_dir)
    with readings.reader(registry_dir) as reader:
        watch = Watch(reader)
        before = watch.look()
        reader.close()
        assert watch.look() == before


def test_growth_and_new_series(registry_dir: Path) -> None:
    """Slots of different lengths are added up, and grow while processes record in them."""
    writers = [lambda pipe: serve(Uneven(registry_dir), pipe)] * 3
    with readings.reader(registry_dir) as reader, children(writers) as all_:
        watch = Watch(reader)
        for n, series in enumerate([5, 300, 20, 600, 2, 700]):
            all_[n % 3].ask("count", n, series)
            watch.look(f"after {series} series")
        for one in all_:
            one.kill()
        watch.look("after all were killed")


def test_extremes_outlive_their_processes(registry_dir: Path) -> None:
    """Last values of max, min and most recent gauges are merged over leases, not overwritten."""

    def set_all(value: float) -> None:
        one = Worker(registry_dir)
        for gauges in (one.highest, one.lowest, one.latest):
            gauges.at(("x",)).set(value)

    for value in (5.0, 9.0, -7.0, 3.0):
        in_child(functools.partial(set_all, value))
    found = {name: readings.samples(registry_dir, name)["x",].value for name in ("highest", "lowest", "latest")}
    assert found == {"highest": 9.0, "lowest": -7.0, "latest": 3.0}
    assert len(slot_files(registry_dir)) == 1
