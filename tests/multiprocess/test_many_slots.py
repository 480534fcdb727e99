"""A directory may hold any number of slots: a reader and prune use a bounded number of descriptors and memory."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jobmetrics.registry import layout
from jobmetrics.registry.directory import Directory, SlotsHeld, prune, slot_name
from jobmetrics.registry.read.snapshot import SnapshotReader
from tests.multiprocess.support import in_child, names, record, slot_files, worker
from tests.support import readings

GIGABYTE = 2**30


def make_slots(path: Path, count: int) -> None:
    """Make slots 1 to count - 1 beside slot 0, as other processes would leave them; every tenth counted one hit."""
    record(path, ("hit", "all"))
    original = (path / slot_name(0)).read_bytes()
    header = layout.SlotHeader.unpack(original)
    for number in range(1, count):
        fd = os.open(path / slot_name(number), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        os.pwrite(fd, header._replace(serial=number.to_bytes(8, "little")).pack(), 0)
        os.ftruncate(fd, len(original))  # the rest of the file is holes
        if number % 10 == 0:
            os.pwrite(fd, original[header.cells_offset :], header.cells_offset)
        os.close(fd)


def with_few_descriptors(limit: int, run: Callable[[], object]) -> None:
    """Run a function in a process with a limit on open files."""

    def limited() -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))
        run()

    in_child(limited)


def command(limit: int, *arguments: str) -> str:
    """The output of a command that runs with a limit on open files."""
    done = subprocess.run(
        [sys.executable, "-m", "jobmetrics", *arguments],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit)),
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_reader_of_many_slots_keeps_few_descriptors(registry_dir: Path) -> None:
    make_slots(registry_dir, 400)

    def run() -> None:
        with readings.reader(registry_dir) as reader:
            for _ in range(2):
                snapshot = reader.read()
                assert (snapshot.live, snapshot.free, snapshot.damaged) == (0, 400, 0)
                assert sum(sample.value for _, found in snapshot.families for sample in found) == 40.0

    with_few_descriptors(128, run)


def test_prune_of_many_slots_keeps_few_descriptors(registry_dir: Path) -> None:
    make_slots(registry_dir, 400)
    with_few_descriptors(128, lambda: prune(Directory(str(registry_dir))))
    assert names(registry_dir) == []


def test_prune_of_many_slots_removes_nothing_while_one_is_held(registry_dir: Path) -> None:
    make_slots(registry_dir, 200)
    with worker(registry_dir) as one:
        one.ask("hit", "all")
        before = names(registry_dir)
        with pytest.raises(SlotsHeld, match="is held by a living process"):
            prune(Directory(str(registry_dir)))
        assert names(registry_dir) == before
        one.leave()


@pytest.mark.full
@pytest.mark.timeout(900)
def test_a_hundred_thousand_slots_with_256_descriptors(registry_dir: Path) -> None:
    make_slots(registry_dir, 100_000)
    options = ("--dir", str(registry_dir))
    text = command(256, "dump", *options)
    assert 'jobmetrics_slots{state="free"} 100000.0\n' in text
    assert 'jobmetrics_slots{state="damaged"} 0.0\n' in text
    assert 'hits_total{who="all"} 10000.0\n' in text
    assert command(256, "prune", *options, "--yes") == f"100001 files removed from {registry_dir}\n"
    assert slot_files(registry_dir) == []


# ---------------------------------------------------------------- sizes


def test_a_sparse_slot_of_64_gigabytes_costs_no_memory(registry_dir: Path) -> None:
    record(registry_dir, ("hit", "all"))
    record(registry_dir, ("hit", "all"))
    file = registry_dir / slot_name(0)
    header = layout.SlotHeader.unpack(file.read_bytes())
    os.truncate(file, header.cells_offset + 64 * GIGABYTE)

    def run() -> None:
        used = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        resource.setrlimit(resource.RLIMIT_AS, (4 * GIGABYTE, resource.RLIM_INFINITY))
        assert readings.values(registry_dir, "hits_total") == {("all",): 2.0}
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 < used + 16 * 2**20

    in_child(run)


def test_a_series_with_more_cells_than_the_index_describes_loses_only_itself(registry_dir: Path) -> None:
    """One record with a valid checksum must not make a reader or a worker reserve gigabytes."""
    record(registry_dir, ("hit", "all"))
    file = registry_dir / "index"
    data = file.read_bytes()
    header = layout.IndexHeader.unpack(data)
    end = layout.unpack_committed(data)
    bad = layout.Record(layout.SERIES_RECORD, 2**32 - 300, 256, {"family": 0, "values": []}).pack(header.identity, end)
    with file.open("r+b") as opened:
        opened.seek(end)
        opened.write(bad)
        opened.seek(layout.COMMITTED_OFFSET)
        opened.write(layout.pack_committed(end + len(bad)))
    assert readings.values(registry_dir, "hits_total") == {("all",): 1.0}
    record(registry_dir, ("hit", "all"), ("hit", "new"))
    assert readings.values(registry_dir, "hits_total") == {("all",): 2.0, ("new",): 1.0}
    assert (registry_dir / slot_name(0)).stat().st_size < 2**20


def test_a_reader_gives_memory_back(registry_dir: Path) -> None:
    """After a large slot is removed."""
    record(registry_dir, ("hit", "all"))
    file = registry_dir / slot_name(0)
    original = file.read_bytes()
    large = layout.SlotHeader(1 << 20, layout.SlotHeader.unpack(original).identity)
    other = registry_dir / slot_name(1)
    other.write_bytes(large.pack())
    os.truncate(other, large.cells_offset + layout.MIN_CELLS * layout.CELL)
    reader = SnapshotReader(str(registry_dir))
    assert reader.read().free == 2
    assert len(reader._scratch._buffer) > 2**25
    other.unlink()
    assert reader.read().free == 1
    assert len(reader._scratch._buffer) < 2**20
    reader.close()
