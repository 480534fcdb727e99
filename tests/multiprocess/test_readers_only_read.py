"""Invariant 6: the exporter works without permission to write, changes nothing, and never delays a writer."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import subprocess
import sys
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from jobmetrics.errors import DirectoryMissing, RegistryError
from tests.multiprocess import damaging
from tests.multiprocess.interruption import AFTER, BEFORE, LINE, Interruption, interrupted_at
from tests.multiprocess.places import ALICE, BOB, TEAM, become, need_root, open_place, read_only_view
from tests.multiprocess.support import (
    Child,
    Worker,
    child,
    in_child,
    in_order,
    names,
    record,
    serve,
    slot_files,
    worker,
)
from tests.multiprocess.test_index_lock import Delayed
from tests.support import readings


def busy(one: Child) -> None:
    """Make a living owner of a slot that uses every kind of metric."""
    one.ask("hit", "all", 5.0)
    one.ask("measure", 1.5)
    one.ask("level", 3.0)
    one.ask("start", "running")


def check(path: Path, pid: int) -> None:
    snapshot = readings.snapshot(path)
    assert [owner.pid for owner in snapshot.owners] == [pid]
    assert (snapshot.live, snapshot.free, snapshot.damaged) == (1, 1, 0)
    assert readings.values(path, "hits_total") == {("all",): 6.0}
    assert readings.values(path, "level") == {("all",): 3.0}
    assert readings.active(path) == {("python", "job", "queue"): 1}


def two_slots(path: Path) -> None:
    """Make two slots, one of them free."""
    with worker(path) as first, worker(path) as second:
        first.ask("hit", "all", 0.5)
        second.ask("hit", "all", 0.5)
        first.leave()
        second.leave()


def test_a_read_only_mount(registry_dir: Path) -> None:
    """The mount also shows whether an owner is alive."""
    two_slots(registry_dir)
    with worker(registry_dir) as one, read_only_view(registry_dir, registry_dir.parent / "view") as view:
        busy(one)
        with pytest.raises(OSError, match="ead-only"):
            (view / "new").touch()
        check(view, one.pid)
        one.kill()
        assert readings.snapshot(view).live == 0
        assert readings.values(view, "level") == {}


def test_an_exporter_of_another_user_who_may_only_read() -> None:
    need_root()
    with open_place() as place:
        place.chmod(0o777)
        path = place / "registry"

        def serve_as_alice(pipe: Connection) -> None:
            become(ALICE, ALICE, TEAM)
            serve(Worker(path, dir_group=TEAM), pipe)

        def look(pid: int) -> None:
            become(BOB, BOB, TEAM)
            assert not os.access(path, os.W_OK)
            assert not any(os.access(path / name, os.W_OK) for name in names(path))
            check(path, pid)

        with child(serve_as_alice) as one, child(serve_as_alice) as two:
            one.ask("hit", "all", 0.5)
            two.ask("hit", "all", 0.5)
            two.leave()
            busy(one)
            path.chmod(0o2550)
            for name in names(path):
                (path / name).chmod(0o440)
            in_child(lambda: look(one.pid))
            one.leave()


def test_a_directory_of_mode_0500(registry_dir: Path) -> None:
    """The owner's exporter, in a directory that is read-only now."""
    need_root()
    with open_place() as place:
        place.chmod(0o777)
        path = place / "registry"
        in_child(in_order(lambda: become(ALICE), lambda: record(path, ("hit", "all"))))
        path.chmod(0o500)
        for name in names(path):
            (path / name).chmod(0o400)
        in_child(in_order(lambda: become(ALICE), lambda: _total_is(path, 1.0)))


def _total_is(path: Path, expected: float) -> None:
    assert readings.values(path, "hits_total") == {("all",): expected}


State = dict[str, tuple[int, int, int, int, bytes]]


def state(path: Path) -> State:
    """Everything a reader could change, without access times."""
    found = {}
    for name in names(path):
        info = (path / name).lstat()
        data = (path / name).read_bytes() if (path / name).is_file() else b""
        found[name] = (info.st_ino, info.st_mode, info.st_size, info.st_mtime_ns, data)
    return found


def test_a_hundred_readings_change_nothing(registry_dir: Path) -> None:
    """Readings of damaged files change nothing either: workers set them aside."""
    two_slots(registry_dir)
    shutil.copy(registry_dir / "slot-00000", registry_dir / "slot-00002")
    damaging.zero_the_header(registry_dir / "slot-00002")
    os.mkfifo(registry_dir / "slot-00003")
    (registry_dir / "slot-00004").symlink_to("slot-00000")
    before, at = state(registry_dir), registry_dir.stat().st_mtime_ns
    with readings.reader(registry_dir) as reader:
        for _ in range(100):
            assert reader.read().damaged == 3
    assert state(registry_dir) == before
    assert registry_dir.stat().st_mtime_ns == at


@pytest.mark.parametrize("damage", damaging.WHOLE_FILE, ids=damaging.named)
def test_a_damaged_index_is_left_to_the_workers(damage: damaging.Damage, registry_dir: Path) -> None:
    two_slots(registry_dir)
    damage(registry_dir / "index")
    before = state(registry_dir)

    def run() -> None:
        for _ in range(2):
            with contextlib.suppress(RegistryError, OSError):
                readings.snapshot(registry_dir)

    in_child(run)
    assert state(registry_dir) == before


def test_a_missing_directory_is_not_made(tmp_path: Path) -> None:
    with pytest.raises(DirectoryMissing):
        readings.snapshot(tmp_path / "registry")
    assert not list(tmp_path.iterdir())
    (tmp_path / "registry").mkdir(mode=0o700)
    assert readings.snapshot(tmp_path / "registry").families == []
    assert not list((tmp_path / "registry").iterdir())


# ---------------------------------------------------------------- readers never delay a writer

_READ = """
import sys
from jobmetrics.registry.read.snapshot import SnapshotReader
reader = SnapshotReader(sys.argv[1])
for _ in range(3):
    assert reader.read().families
reader.close()
"""


def test_a_reader_makes_only_reading_system_calls(registry_dir: Path) -> None:
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("needs strace")
    two_slots(registry_dir)
    log = registry_dir.parent / "strace"
    with worker(registry_dir) as one:
        busy(one)
        arguments = [strace, "-f", "-y", "-o", str(log), sys.executable, "-c", _READ, str(registry_dir)]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False)
        if "ptrace" in done.stderr:
            pytest.skip(f"strace may not trace here: {done.stderr.strip()}")
        assert done.returncode == 0, done.stderr
        one.leave()
    ours = [line for line in log.read_text(encoding="utf-8").splitlines() if str(registry_dir) in line]
    calls = {match[1] for line in ours if (match := re.search(r"\b([a-z_0-9]+)\(", line))}
    assert calls <= {
        "execve", "openat", "open", "newfstatat", "fstat", "lstat", "stat", "statx", "fcntl", "pread64", "preadv",
        "preadv2", "read", "getdents64", "close", "lseek", "ioctl",
    }  # fmt: skip
    for line in ours:
        if re.search(r"\bopen(at)?\(", line):
            assert "O_RDONLY" in line
            assert "O_CREAT" not in line
        if "fcntl" in line:
            assert "SETLK" not in line
    assert any("F_OFD_GETLK" in line for line in ours)


class Victim(Delayed):
    """A writer that adds up its waits; it runs every step of a writer's life."""

    def live(self, n: int) -> float:
        return self.delay_of("full_job", f"job {n}")


@pytest.mark.parametrize("when", [BEFORE, AFTER, LINE])
def test_a_reader_stopped_at_any_step_delays_no_writer(when: str, tmp_path: Path) -> None:
    """First record, append, growth, lease and a new generation beside a stopped reader."""
    path = tmp_path / "registry"
    rounds = 0

    def read(interruption: Interruption, _: Connection) -> None:
        path.mkdir(mode=0o700)
        two_slots(path)
        with readings.reader(path) as reader:
            with interruption.armed():
                reader.read()
                reader.read()
            reader.read()

    for stopped in interrupted_at(when, read, signal_number=signal.SIGSTOP, stride=29 if when == LINE else 1):
        rounds += 1
        with child(lambda pipe: serve(Victim(path), pipe)) as one:
            assert one.ask("live", 1) == 0.0
            assert one.ask("delay_of", "measure", 1.0, "grown") == 0.0
            (path / "index").unlink()
            assert one.ask("delay_of", "later") == 0.0
            assert one.ask("live", 2) == 0.0
            one.leave()
        with child(lambda pipe: serve(Victim(path), pipe)) as one:
            assert one.ask("live", 3) == 0.0
            one.leave()
        assert sum(readings.values(path, "jobs_total").values()) == 2.0
        stopped.signal(signal.SIGCONT)
        stopped.join()
        assert len(slot_files(path)) <= 2
        path.rename(tmp_path / f"done-{rounds}")
    assert rounds > 10
