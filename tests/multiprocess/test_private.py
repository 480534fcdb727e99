"""Invariant 11: only the owner or the group uses a directory; links, world-writable places and FIFOs are refused."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobmetrics import settings
from jobmetrics.errors import DirectoryRefused, RegistryError
from jobmetrics.registry.directory import Directory
from jobmetrics.registry.read.snapshot import SnapshotReader
from tests.multiprocess.places import ALICE, BOB, CAROL, OTHERS, TEAM, become, need_root, open_place
from tests.multiprocess.support import (
    Worker,
    child,
    children,
    in_child,
    in_order,
    names,
    record,
    serve,
    slot_files,
    workers,
)
from tests.support import readings

UMASKS = [0o000, 0o002, 0o022, 0o027, 0o077, 0o177, 0o277, 0o777]


def mode(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def total(path: Path) -> float:
    return readings.values(path, "hits_total").get(("all",), 0.0)


def hit(path: Path, user: int | None = None, *groups: int, **more: Any) -> None:
    """Record once in a process of this user and these groups; the first group is its primary one."""

    def run() -> None:
        if user is not None:
            become(user, *(groups or (user,)))
        Worker(path, **more).hit("all")

    in_child(run)


def refused(path: Path, user: int | None = None, *groups: int, **more: Any) -> str:
    """The same for a process that is refused: return the message. The job itself goes on."""

    def run(pipe: Any) -> None:
        if user is not None:
            become(user, *(groups or (user,)))
        try:
            Worker(path, **more).hit("all")
        except DirectoryRefused as error:
            pipe.send((True, str(error)))
        Worker(path, propagate_errors=False, **more).job()

    with child(run) as one:
        one.join()
        return str(one.answer())


@pytest.fixture
def place() -> Iterator[Path]:
    need_root()
    with open_place() as path:
        path.chmod(0o777)
        yield path


# ---------------------------------------------------------------- modes


@pytest.mark.parametrize("umask", UMASKS, ids=oct)
def test_only_the_owner_can_use_the_directory_whatever_the_umask(umask: int, place: Path) -> None:
    """As a user other than root, who may write in any mode."""
    path = place / "registry"

    def run() -> None:
        become(ALICE)
        os.umask(umask)
        one = Worker(path)
        one.hit("all")
        one.job()

    in_child(run)
    hit(path, ALICE)
    assert mode(path) == 0o700
    assert {mode(path / name) for name in names(path)} == {0o600}
    assert total(path) == 2.0


@pytest.mark.parametrize("umask", UMASKS, ids=oct)
def test_only_the_group_can_use_its_directory_whatever_the_umask(umask: int, place: Path) -> None:
    path = place / "registry"

    def run(user: int) -> None:
        become(user, user, TEAM)
        os.umask(umask)
        one = Worker(path, dir_group=TEAM)
        one.hit("all")
        one.job()

    for user in (ALICE, BOB):
        in_child(lambda user=user: run(user))  # type: ignore[misc]
    assert mode(path) == 0o2770
    assert path.stat().st_gid == TEAM
    files = [path / name for name in names(path)]
    assert {mode(file) for file in files} == {0o660}
    assert {file.stat().st_gid for file in files} == {TEAM}
    assert total(path) == 2.0
    assert len(slot_files(path)) == 1, "one member leases the slot that another has freed"


def test_missing_parents_are_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "registry"
    hit(path)
    assert mode(path) == 0o700
    assert total(path) == 1.0


@pytest.mark.parametrize("wrong", [0o755, 0o750, 0o711, 0o500])
def test_a_directory_that_others_may_only_read_is_accepted(wrong: int, registry_dir: Path) -> None:
    """The operator chose this mode; no other user can write there."""
    hit(registry_dir)
    registry_dir.chmod(wrong)
    assert total(registry_dir) == 1.0


def test_many_processes_of_one_group_at_once(place: Path) -> None:
    path = place / "registry"
    users = [ALICE, BOB, CAROL]

    def run(user: int) -> Callable[[Any], None]:
        def serve_as(pipe: Any) -> None:
            become(user, user, TEAM)
            serve(Worker(path, dir_group=TEAM), pipe)

        return serve_as

    for _ in range(3):
        with children([run(users[n % 3]) for n in range(9)]) as all_:
            for one in all_:
                one.send("hit", "all", 1.0, 10)
            for one in all_:
                one.answer()
            assert readings.snapshot(path).live == 9
            for one in all_:
                one.leave()
    assert total(path) == 270.0
    assert len(slot_files(path)) == 9


# ---------------------------------------------------------------- refused users


def test_another_users_directory_is_refused(place: Path) -> None:
    path = place / "registry"
    hit(path, ALICE)
    path.chmod(0o755)
    assert f"belongs to user {ALICE}" in refused(path, BOB)
    assert total(path) == 1.0


def test_root_is_another_user_too(place: Path) -> None:
    """The owner could not write to files that root makes there."""
    path = place / "registry"
    hit(path, ALICE)
    assert f"belongs to user {ALICE}" in refused(path)
    assert {(path / name).stat().st_uid for name in names(path)} == {ALICE}


def test_a_user_outside_the_group_is_refused(place: Path) -> None:
    path = place / "registry"
    hit(path, ALICE, ALICE, TEAM, dir_group=TEAM)
    path.chmod(0o2775)
    before = {name: (path / name).read_bytes() for name in names(path)}

    def run() -> None:
        become(BOB, BOB, OTHERS)
        for group in (None, TEAM, OTHERS):
            one = Worker(path, propagate_errors=False, dir_group=group)
            one.hit("all")
            one.job()

    in_child(run)
    assert {name: (path / name).read_bytes() for name in names(path)} == before
    assert "dir_group" in refused(path, BOB, BOB, OTHERS, dir_group=OTHERS)


def refusal(path: Path, user: int | None = None, *groups: int, **allowed: int) -> str:
    """The error of a reader with this user and these groups; empty if it reads one slot."""

    def run(pipe: Any) -> None:
        if user is not None:
            become(user, *(groups or (user,)))
        reader = SnapshotReader(Directory(str(path), **allowed))
        try:
            assert reader.read().free == 1
        except DirectoryRefused as error:
            pipe.send((True, str(error)))
        else:
            pipe.send((True, ""))

    with child(run) as one:
        one.join()
        return str(one.answer())


@pytest.mark.parametrize("reader", [BOB, None], ids=["another user", "root"])
def test_another_users_directory_is_not_read_without_permission(reader: int | None, place: Path) -> None:
    """Another user who makes the directory first would decide what the exporter shows."""
    path = place / "registry"
    hit(path, ALICE)
    path.chmod(0o755)
    (path / "index").chmod(0o644)
    (path / "slot-00000").chmod(0o644)
    message = refusal(path, reader)
    assert f"belongs to user {ALICE}" in message
    assert f"dir_owner to {ALICE}" in message
    assert refusal(path, reader, owner=CAROL) == message
    assert refusal(path, reader, group=TEAM) == message
    assert refusal(path, reader, owner=ALICE) == ""
    assert refusal(path, ALICE) == ""


def test_a_directory_of_root_is_read_by_everyone_who_can(place: Path) -> None:
    path = place / "registry"
    hit(path)
    path.chmod(0o755)
    (path / "index").chmod(0o644)
    (path / "slot-00000").chmod(0o644)
    assert refusal(path, BOB) == ""


def test_another_group_members_directory_is_read_with_the_group_allowed(place: Path) -> None:
    path = place / "registry"
    hit(path, ALICE, ALICE, TEAM, dir_group=TEAM)
    assert "dir_group" in refusal(path, BOB, BOB, TEAM)
    assert "dir_group" in refusal(path, BOB, BOB, TEAM, OTHERS, group=OTHERS)
    assert refusal(path, BOB, BOB, TEAM, group=TEAM) == ""


def test_a_default_directory_that_another_user_made_first_is_passed_over(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Worker and exporter use the same one instead."""
    place.chmod(0o1777)
    monkeypatch.setattr(os, "access", lambda *_: False)  # as on a system without /dev/shm
    monkeypatch.setattr(tempfile, "tempdir", str(place))
    default = place / f"jobmetrics-{ALICE}"
    in_child(in_order(lambda: become(BOB), lambda: default.mkdir(mode=0o755)))

    def run() -> None:
        become(ALICE)
        Worker(Path(settings.load({}).dir)).hit("all")
        assert total(Path(settings.load({}).dir)) == 1.0

    in_child(run)
    assert names(default) == []
    assert names(Path(f"{default}~2")) == ["index", "slot-00000"]
    assert Path(f"{default}~2").stat().st_uid == ALICE


def test_permission_to_read_is_not_permission_to_record(place: Path) -> None:
    path = place / "registry"
    hit(path, ALICE)
    assert f"belongs to user {ALICE}" in refused(path, dir_owner=ALICE)
    assert {(path / name).stat().st_uid for name in names(path)} == {ALICE}


def test_a_directory_of_another_group_is_not_taken_over(place: Path) -> None:
    path = place / "registry"
    hit(path, ALICE, ALICE, TEAM, dir_group=TEAM)
    assert "group" in refused(path, BOB, BOB, TEAM, OTHERS, dir_group=OTHERS)
    assert path.stat().st_gid == TEAM


@pytest.mark.parametrize("wrong", [0o777, 0o1777, 0o707, 0o702, 0o2777])
def test_a_directory_that_anyone_may_write_to_is_refused_by_everyone(wrong: int, registry_dir: Path) -> None:
    hit(registry_dir)
    registry_dir.chmod(wrong)
    assert "written by anyone" in refused(registry_dir)
    with pytest.raises(DirectoryRefused, match="written by anyone"):
        readings.snapshot(registry_dir)


def test_a_link_in_place_of_the_directory_is_refused_by_everyone(registry_dir: Path) -> None:
    hit(registry_dir)
    link = registry_dir.parent / "link"
    link.symlink_to(registry_dir)
    assert "symbolic link" in refused(link)
    with pytest.raises(DirectoryRefused, match="symbolic link"):
        readings.snapshot(link)
    assert total(registry_dir) == 1.0


@pytest.mark.parametrize("kind", ["file", "fifo"])
def test_something_else_in_place_of_the_directory_is_refused(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "registry"
    path.touch() if kind == "file" else os.mkfifo(path)
    assert "not a directory" in refused(path)
    with pytest.raises(DirectoryRefused):
        readings.snapshot(path)


def test_a_link_to_nowhere_makes_nothing_there(tmp_path: Path) -> None:
    link, target = tmp_path / "registry", tmp_path / "target"
    link.symlink_to(target)
    refused(link)
    assert not target.exists()


# ---------------------------------------------------------------- planted files


@pytest.mark.parametrize("name", ["index", "slot-00000", "slot-00001", "index.set-aside", "slot-00000.set-aside"])
@pytest.mark.parametrize("exists", [True, False])
def test_a_planted_link_is_never_followed(name: str, exists: bool, registry_dir: Path) -> None:
    """A user who may write to the directory cannot make a worker write elsewhere, or lose the target's contents."""
    target = registry_dir.parent / "target"
    if exists:
        target.write_bytes(b"precious" * 1000)
        target.chmod(0o644)
    (registry_dir / name).symlink_to(target)
    with workers(registry_dir, 3) as all_:
        for one in all_:
            one.ask("hit", "all")
        for one in all_:
            one.leave()
    for made in ("index", "slot-00000"):  # recorded twice: the second process finds the link while it sets aside
        (registry_dir / made).write_bytes(b"damaged" * 1000)
    hit(registry_dir)
    if exists:
        assert target.read_bytes() == b"precious" * 1000
        assert mode(target) == 0o644
    else:
        assert not target.exists()


@pytest.mark.parametrize("name", ["index", "slot-00000", "slot-00001"])
def test_a_fifo_blocks_no_process(name: str, registry_dir: Path) -> None:
    """No process has the other end open."""
    hit(registry_dir)
    (registry_dir / name).unlink(missing_ok=True)
    os.mkfifo(registry_dir / name)

    def run() -> None:
        try:
            readings.snapshot(registry_dir)
        except RegistryError:
            assert name == "index"

    in_child(run)
    with workers(registry_dir, 3) as all_:
        for one in all_:
            one.ask("hit", "all")
        assert readings.snapshot(registry_dir).live == 3
    assert total(registry_dir) >= 3.0


def test_a_device_is_neither_read_nor_written(registry_dir: Path) -> None:
    need_root()
    hit(registry_dir)
    for name in ("index", "slot-00000"):
        (registry_dir / name).unlink()
        os.mknod(registry_dir / name, stat.S_IFCHR | 0o600, os.makedev(1, 5))  # /dev/zero
    hit(registry_dir)
    assert total(registry_dir) == 1.0


def test_descriptors_are_closed_in_programs_that_a_job_starts(registry_dir: Path) -> None:
    def run() -> None:
        one = Worker(registry_dir)
        one.hit("all")
        with readings.reader(registry_dir) as reader:
            reader.read()
            for entry in Path("/proc/self/fd").iterdir():
                if registry_dir in Path(os.path.realpath(entry)).parents:
                    assert not os.get_inheritable(int(entry.name))

    in_child(run)
    record(registry_dir, ("hit", "all"))
