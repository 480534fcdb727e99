"""Invariant 10: files of another format version are refused with a clear error or set aside, never misread."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobmetrics.errors import FormatRefused
from jobmetrics.registry import layout
from tests.multiprocess.support import Worker, child, in_child, names, record, serve, slot_files, worker, workers
from tests.support import readings

OTHER_VERSIONS = [0, layout.FORMAT_VERSION + 1, 2**32 - 1]


def total(path: Path) -> float:
    return readings.values(path, "hits_total").get(("all",), 0.0)


def record_as_version(version: int, path: Path, amount: float = 1000.0) -> None:
    """Record as a jobmetrics with another format version and the same format does: checksums are valid."""

    def run() -> None:
        layout.FORMAT_VERSION = version
        Worker(path).hit("all", amount)

    in_child(run)


def files(path: Path) -> dict[str, bytes]:
    return {name: (path / name).read_bytes() for name in names(path)}


@pytest.mark.parametrize("version", OTHER_VERSIONS)
def test_an_index_of_another_version_is_refused_and_left_alone(
    version: int, registry_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record_as_version(version, registry_dir)
    before = files(registry_dir)
    with pytest.raises(FormatRefused, match=rf"version {version}; this jobmetrics reads {layout.FORMAT_VERSION}"):
        readings.snapshot(registry_dir)

    def run() -> None:
        one = Worker(registry_dir, propagate_errors=False)
        for n in range(3):
            one.job(f"{n}")
            one.hit("all")
            one.later()
        messages = [line for line in caplog.messages if f"format version {version}" in line]
        assert len(messages) == 1

    in_child(run)
    assert files(registry_dir) == before


@pytest.mark.parametrize("version", OTHER_VERSIONS)
def test_a_slot_of_another_version_is_skipped_and_set_aside(version: int, registry_dir: Path) -> None:
    """Its index was wiped, or one of its slots was copied here."""
    record(registry_dir, ("hit", "all"))
    header = layout.SlotHeader.unpack((registry_dir / "slot-00000").read_bytes())

    data = bytearray((registry_dir / "slot-00000").read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(layout, "FORMAT_VERSION", version)
        data[: layout.SLOT_HEADER_SIZE] = header.pack()
    (registry_dir / "slot-00001").write_bytes(data)
    (registry_dir / "slot-00001").chmod(0o600)
    with readings.reader(registry_dir) as reader:
        for _ in range(2):
            snapshot = reader.read()
            assert snapshot.damaged == 1
            assert total(registry_dir) == 1.0
    with workers(registry_dir, 2) as all_:
        for one in all_:
            one.ask("hit", "all", 10.0)
        for one in all_:
            one.leave()
    assert total(registry_dir) == 21.0
    assert len(slot_files(registry_dir)) == 2
    assert bytes(data) in [content for name, content in files(registry_dir).items() if name.startswith("slot-00001.")]


@pytest.mark.parametrize("version", OTHER_VERSIONS)
def test_slots_of_another_version_with_no_index(version: int, registry_dir: Path) -> None:
    record_as_version(version, registry_dir)
    (registry_dir / "index").unlink()
    with workers(registry_dir, 2) as all_:
        for one in all_:
            one.ask("hit", "all")
        for one in all_:
            one.leave()
    assert total(registry_dir) == 2.0
    assert readings.snapshot(registry_dir).damaged == 0


def test_a_newer_index_under_living_writers(registry_dir: Path) -> None:
    """A deploy starts the new version first: the old workers keep updates in memory until the new index is gone."""
    newer = registry_dir.parent / "newer"
    record_as_version(layout.FORMAT_VERSION + 1, newer)
    with child(lambda pipe: serve(Worker(registry_dir, propagate_errors=False), pipe)) as one:
        one.ask("hit", "all")
        (newer / "index").replace(registry_dir / "index")
        data = (registry_dir / "index").read_bytes()
        for n in range(3):
            one.ask("later")
            one.ask("job", f"{n}")
            one.ask("hit", "all", 10.0)
        assert (registry_dir / "index").read_bytes() == data
        (registry_dir / "index").unlink()
        one.ask("later")
        one.ask("hit", "all", 10.0)
        one.leave()
    assert total(registry_dir) == 40.0
    assert sum(readings.values(registry_dir, "jobs_total").values()) == 3.0


def test_the_reader_reports_an_index_whose_version_changes(registry_dir: Path) -> None:
    newer = registry_dir.parent / "newer"
    record_as_version(layout.FORMAT_VERSION + 1, newer)
    with worker(registry_dir) as one, readings.reader(registry_dir) as reader:
        one.ask("hit", "all")
        reader.read()
        kept = (registry_dir / "index").read_bytes()
        (newer / "index").replace(registry_dir / "index")
        for _ in range(2):
            with pytest.raises(FormatRefused):
                reader.read()
        (registry_dir / "index").write_bytes(kept)
        found = {family.name: samples for family, samples in reader.read().families}
        assert found["hits_total"][0].value == 1.0
        one.leave()


@pytest.mark.parametrize("magic", [b"JOBMIDX\r", b"\x7fELF\x02\x01\x01\x00", b"SQLite f", bytes(8)])
def test_a_file_without_the_magic_number_is_damaged(magic: bytes, registry_dir: Path) -> None:
    record(registry_dir, ("hit", "all"))
    data = bytearray((registry_dir / "index").read_bytes())
    data[:8] = magic
    (registry_dir / "index").write_bytes(data)
    record(registry_dir, ("hit", "all", 5.0))
    assert total(registry_dir) == 5.0
    assert bytes(data) in [content for name, content in files(registry_dir).items() if name.startswith("index.")]
