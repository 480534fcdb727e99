from __future__ import annotations

import errno
import os
import socket
import stat
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobmetrics.errors import Damaged, DirectoryMissing, DirectoryRefused
from jobmetrics.registry.directory import Directory, same_file, slot_name, slot_number
from jobmetrics.registry.files import closing

GROUP = os.getgid()


@pytest.fixture
def directory(registry_dir: Path) -> Directory:
    return Directory(str(registry_dir))


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# ------------------------------------------------------------------ names


def test_slot_name_has_five_digits() -> None:
    assert slot_name(42) == "slot-00042"


@given(st.integers(0, 10**9))
def test_slot_number_is_read_back(number: int) -> None:
    assert slot_number(slot_name(number)) == number


@pytest.mark.parametrize(
    "name",
    [
        "index",
        "slot-",
        "slot-1",
        "slot-000001",
        "slot-00001.set-aside",
        "slot--0001",
        "slot-\u0660\u0660\u0660\u0660\u0661",
        "xslot-00001",
    ],
)
def test_any_other_name_is_not_a_slot(name: str) -> None:
    assert slot_number(name) is None


def test_slots_are_listed_in_order(registry_dir: Path, directory: Directory) -> None:
    for name in ("slot-00010", "slot-00002", "index", "slot-00003.set-aside"):
        (registry_dir / name).touch()
    assert directory.slots() == [2, 10]


# ------------------------------------------------------------------ making and checking it


@pytest.mark.usefixtures("open_umask")
def test_the_directory_is_private_to_its_owner(tmp_path: Path) -> None:
    Directory(str(tmp_path / "new")).prepare()
    assert mode(tmp_path / "new") == 0o700


def test_missing_parents_are_made(tmp_path: Path) -> None:
    Directory(str(tmp_path / "a" / "b" / "c")).prepare()
    assert mode(tmp_path / "a" / "b" / "c") == 0o700


def test_directory_with_a_group_is_shared_with_it(tmp_path: Path) -> None:
    Directory(str(tmp_path / "new"), GROUP).prepare()
    assert mode(tmp_path / "new") == 0o2770
    assert (tmp_path / "new").stat().st_gid == GROUP


def test_directory_that_is_there_is_given_to_the_group(registry_dir: Path) -> None:
    Directory(str(registry_dir), GROUP).prepare()
    assert mode(registry_dir) == 0o2770


def test_another_users_directory_is_refused(directory: Directory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    with pytest.raises(DirectoryRefused, match=r"this process is user 54321; set dir_group"):
        directory.prepare()


def test_another_members_directory_is_used(registry_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = Directory(str(registry_dir), GROUP)
    shared.prepare()
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    shared.prepare()
    assert mode(registry_dir) == 0o2770


def test_another_member_may_be_about_to_give_the_directory_to_the_group(
    registry_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry_dir.chmod(0o700)
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    monkeypatch.setattr(time, "sleep", lambda _: registry_dir.chmod(0o2770))
    waited_for = Directory(str(registry_dir), GROUP)
    waited_for.prepare()
    assert stat.S_IMODE(waited_for._settled().st_mode) == mode(registry_dir) == 0o2770


def test_another_groups_directory_is_refused(registry_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    with pytest.raises(DirectoryRefused, match=rf"belongs to group {GROUP}, dir_group is {GROUP + 1}$"):
        Directory(str(registry_dir), GROUP + 1).prepare()


def test_directory_that_anyone_may_write_to_is_refused(registry_dir: Path, directory: Directory) -> None:
    registry_dir.chmod(0o777)
    with pytest.raises(DirectoryRefused, match=r"may be written by anyone"):
        directory.prepare()


def test_link_to_a_directory_is_refused(tmp_path: Path, registry_dir: Path) -> None:
    (tmp_path / "link").symlink_to(registry_dir)
    with pytest.raises(DirectoryRefused, match=r"is a symbolic link"):
        Directory(str(tmp_path / "link")).prepare()


def test_a_dangling_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    with pytest.raises(DirectoryRefused, match=r"is a symbolic link"):
        Directory(str(tmp_path / "link")).prepare()
    assert not (tmp_path / "nowhere").exists()


def test_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DirectoryRefused, match=r"is not a directory$"):
        Directory(str(tmp_path / "file")).prepare()


def test_check_makes_nothing(tmp_path: Path) -> None:
    with pytest.raises(DirectoryMissing, match=r"does not exist yet; the first worker that records creates it$"):
        Directory(str(tmp_path / "none")).check()
    assert not (tmp_path / "none").exists()


def test_a_reader_may_read_the_directory_of_a_user_that_it_names(
    registry_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 54321)
    assert stat.S_ISDIR(Directory(str(registry_dir), owner=os.getuid()).check().st_mode)


# ------------------------------------------------------------------ opening files


@pytest.mark.usefixtures("open_umask")
def test_a_file_is_private_to_its_owner(registry_dir: Path, directory: Directory) -> None:
    os.close(directory.open("new", os.O_RDWR | os.O_CREAT))
    assert mode(registry_dir / "new") == 0o600


def test_file_is_made_for_the_group_whatever_the_umask(registry_dir: Path) -> None:
    before = os.umask(0o077)
    try:
        os.close(Directory(str(registry_dir), GROUP).open("new", os.O_RDWR | os.O_CREAT))
    finally:
        os.umask(before)
    assert mode(registry_dir / "new") == 0o660


def test_descriptor_is_not_inherited_by_other_programs(directory: Directory) -> None:
    with closing(directory.open("new", os.O_RDWR | os.O_CREAT)) as fd:
        assert os.get_inheritable(fd) is False


def test_a_missing_file_has_its_own_error(directory: Directory) -> None:
    with pytest.raises(FileNotFoundError):
        directory.open("none", os.O_RDONLY)


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR, os.O_RDWR | os.O_CREAT])
@pytest.mark.parametrize("kind", ["link", "dangling link", "fifo", "directory", "socket"])
def test_anything_but_a_file_is_damaged_and_never_blocks(
    registry_dir: Path, directory: Directory, kind: str, flags: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = registry_dir / "slot-00000"
    if kind == "link":
        (registry_dir / "target").write_bytes(b"x")
        path.symlink_to(registry_dir / "target")
    elif kind == "dangling link":
        path.symlink_to(registry_dir / "nowhere")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    else:
        monkeypatch.chdir(registry_dir)  # a socket's path has to be short
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind("slot-00000")
    with pytest.raises(Damaged, match=r"^slot-00000 is not a regular file$"):
        directory.open("slot-00000", flags)
    assert not (registry_dir / "nowhere").exists()


def test_refused_file_leaves_no_descriptor_open(registry_dir: Path, directory: Directory) -> None:
    (registry_dir / "slot-00000").mkdir()
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(Damaged):
        directory.open("slot-00000", os.O_RDONLY)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# ------------------------------------------------------------------ setting aside


def test_set_aside_keeps_the_contents_of_the_file(registry_dir: Path, directory: Directory) -> None:
    (registry_dir / "index").write_bytes(b"bad")
    directory.set_aside("index")
    assert [path.name for path in registry_dir.iterdir()] == ["index.set-aside"]
    assert (registry_dir / "index.set-aside").read_bytes() == b"bad"


def test_the_file_set_aside_before_is_replaced(registry_dir: Path, directory: Directory) -> None:
    (registry_dir / "index.set-aside").write_bytes(b"older")
    (registry_dir / "index").write_bytes(b"newer")
    directory.set_aside("index")
    assert (registry_dir / "index.set-aside").read_bytes() == b"newer"


def test_directory_in_a_files_place_is_set_aside_beside_an_earlier_file(
    registry_dir: Path, directory: Directory
) -> None:
    (registry_dir / "index.set-aside").write_bytes(b"older")
    (registry_dir / "index").mkdir()
    directory.set_aside("index")
    assert not (registry_dir / "index").exists()
    assert (registry_dir / "index.set-aside").read_bytes() == b"older"


def test_a_file_already_set_aside_is_not_an_error(registry_dir: Path, directory: Directory) -> None:
    directory.set_aside("index")
    assert list(registry_dir.iterdir()) == []


# ------------------------------------------------------------------ small helpers


def test_descriptor_is_the_same_file_as_its_path(registry_dir: Path) -> None:
    path = registry_dir / "f"
    path.touch()
    with closing(os.open(path, os.O_RDONLY)) as fd:
        assert same_file(fd, str(path)) is True


def test_descriptor_is_another_file_once_the_path_was_replaced(registry_dir: Path) -> None:
    path = registry_dir / "f"
    path.touch()
    with closing(os.open(path, os.O_RDONLY)) as fd:
        (registry_dir / "g").touch()
        (registry_dir / "g").rename(path)
        assert same_file(fd, str(path)) is False


def test_a_descriptor_is_not_the_file_of_a_removed_path(registry_dir: Path) -> None:
    path = registry_dir / "f"
    path.touch()
    with closing(os.open(path, os.O_RDONLY)) as fd:
        path.unlink()
        assert same_file(fd, str(path)) is False


def test_link_to_the_file_is_not_the_file(registry_dir: Path) -> None:
    path = registry_dir / "f"
    path.touch()
    (registry_dir / "link").symlink_to(path)
    with closing(os.open(path, os.O_RDONLY)) as fd:
        assert same_file(fd, str(registry_dir / "link")) is False


def test_closing_closes_after_an_error(registry_dir: Path) -> None:
    fd = os.open(registry_dir, os.O_RDONLY)
    with pytest.raises(ValueError, match=r"^x$"), closing(fd):
        raise ValueError("x")
    with pytest.raises(OSError) as caught:
        os.fstat(fd)
    assert caught.value.errno == errno.EBADF
