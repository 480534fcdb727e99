"""Which descriptors a forked child releases."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from jobmetrics.registry import files
from jobmetrics.registry.files import RETRY_INTERVAL, is_ready, lock_within, mark_ready, try_lock


@pytest.fixture
def fd(tmp_path: Path) -> int:
    (tmp_path / "file").touch()
    return files.open_noted(str(tmp_path / "file"), os.O_RDWR)


def test_an_open_descriptor_is_still_owned(fd: int) -> None:
    assert fd in files.open_descriptors()
    files.close(fd)


def test_a_closed_descriptor_is_not_owned(fd: int) -> None:
    files.close(fd)
    assert fd not in files.noted
    assert fd not in files.open_descriptors()


def test_a_descriptor_of_another_file_is_not_owned(fd: int, tmp_path: Path) -> None:
    other = os.open(tmp_path, os.O_RDONLY)
    os.dup2(other, fd)
    ours = files.open_descriptors()
    os.close(other)
    os.close(fd)
    assert fd not in ours


def test_a_descriptor_closed_elsewhere_is_not_owned(fd: int) -> None:
    os.close(fd)
    assert fd not in files.open_descriptors()


def test_a_child_forgets_what_it_inherited_and_has_another_lock(fd: int, monkeypatch: pytest.MonkeyPatch) -> None:
    parents, lock = {fd: files.noted[fd]}, files.lock
    files.close(fd)
    reopened = os.dup(0)
    monkeypatch.setattr(files, "noted", {**parents, reopened: None})
    monkeypatch.setattr(files, "lock", lock)
    inherited = files.forget_inherited()
    os.close(reopened)
    assert (inherited, files.noted) == ([reopened], {})
    assert files.lock is not lock


Open = Callable[[int], int]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    file = tmp_path / "file"
    file.write_bytes(b"x")
    return file


@pytest.fixture
def opened(path: Path) -> Iterator[Open]:
    """Open the file again, each time with a separate open()."""
    descriptors: list[int] = []

    def open_it(flags: int = os.O_RDWR) -> int:
        descriptors.append(os.open(path, flags))
        return descriptors[-1]

    yield open_it
    for fd in descriptors:
        try:
            os.close(fd)
        except OSError:  # the test closed it
            continue


class Waiting:
    """A clock that only sleeping advances."""

    def __init__(self) -> None:
        self.now = 50.0
        self.slept: list[float] = []

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.slept.append(seconds)
        self.now += seconds


@pytest.fixture
def waiting(monkeypatch: pytest.MonkeyPatch) -> Waiting:
    fake = Waiting()
    monkeypatch.setattr(files, "time", fake)
    return fake


def test_free_lock_is_taken(opened: Open) -> None:
    assert try_lock(opened(os.O_RDWR)) is True


def test_one_open_file_has_the_lock_at_a_time(opened: Open) -> None:
    try_lock(opened(os.O_RDWR))
    assert try_lock(opened(os.O_RDWR)) is False


def test_holder_may_take_it_again(opened: Open) -> None:
    fd = opened(os.O_RDWR)
    try_lock(fd)
    assert try_lock(fd) is True


def test_closing_another_descriptor_of_the_file_does_not_end_the_lock(opened: Open) -> None:
    try_lock(opened(os.O_RDWR))
    os.close(opened(os.O_RDWR))
    assert try_lock(opened(os.O_RDWR)) is False


def test_lock_ends_with_its_last_descriptor(opened: Open) -> None:
    fd = opened(os.O_RDWR)
    try_lock(fd)
    os.close(fd)
    assert try_lock(opened(os.O_RDWR)) is True


def test_lock_stays_while_a_copy_of_its_descriptor_is_open(opened: Open) -> None:
    fd = opened(os.O_RDWR)
    try_lock(fd)
    copy = os.dup(fd)
    os.close(fd)
    assert try_lock(opened(os.O_RDWR)) is False
    os.close(copy)


def hold_ready(fd: int) -> None:
    try_lock(fd)
    mark_ready(fd)


def test_mark_of_a_holder_shows_on_a_read_only_descriptor(opened: Open) -> None:
    hold_ready(opened(os.O_RDWR))
    assert is_ready(opened(os.O_RDONLY)) is True


def test_free_file_shows_as_not_ready(opened: Open) -> None:
    assert is_ready(opened(os.O_RDONLY)) is False


def test_checking_takes_no_lock(opened: Open) -> None:
    is_ready(opened(os.O_RDONLY))
    fd = opened(os.O_RDWR)
    assert try_lock(fd) is True
    mark_ready(fd)


def test_checking_ends_neither_the_lock_nor_the_mark(opened: Open) -> None:
    hold_ready(opened(os.O_RDWR))
    is_ready(opened(os.O_RDONLY))
    assert is_ready(opened(os.O_RDONLY)) is True
    assert try_lock(opened(os.O_RDWR)) is False


def test_descriptor_that_is_closed_is_an_error(path: Path) -> None:
    fd = os.open(path, os.O_RDWR)
    os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        try_lock(fd)


def test_lock_within_takes_a_free_lock_without_waiting(opened: Open, waiting: Waiting) -> None:
    assert lock_within(opened(os.O_RDWR), 1.0) is True
    assert waiting.slept == []


def test_lock_within_no_time_tries_once(opened: Open, waiting: Waiting) -> None:
    try_lock(opened(os.O_RDWR))
    assert lock_within(opened(os.O_RDWR), 0.0) is False
    assert waiting.slept == []


def test_lock_within_gives_up_at_the_deadline(opened: Open, waiting: Waiting) -> None:
    try_lock(opened(os.O_RDWR))
    assert lock_within(opened(os.O_RDWR), RETRY_INTERVAL * 2.5) is False
    assert waiting.slept == pytest.approx([RETRY_INTERVAL, RETRY_INTERVAL * 1.5])


def test_lock_within_takes_a_lock_released_meanwhile(
    opened: Open, waiting: Waiting, monkeypatch: pytest.MonkeyPatch
) -> None:
    holder = opened(os.O_RDWR)
    try_lock(holder)
    monkeypatch.setattr(waiting, "sleep", lambda seconds: os.close(holder))
    assert lock_within(opened(os.O_RDWR), 1.0) is True


@pytest.fixture
def without_ofd_locks(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on macOS."""
    monkeypatch.setattr(files, "_OFD_SETLK", None)
    monkeypatch.setattr(files, "_OFD_GETLK", None)


@pytest.mark.usefixtures("without_ofd_locks")
def test_one_open_file_has_the_flock_at_a_time(opened: Open) -> None:
    assert try_lock(opened(os.O_RDWR)) is True
    assert try_lock(opened(os.O_RDWR)) is False


@pytest.mark.usefixtures("without_ofd_locks")
def test_flock_shows_as_held_and_as_free(opened: Open) -> None:
    holder = opened(os.O_RDWR)
    assert is_ready(opened(os.O_RDONLY)) is False
    try_lock(holder)
    assert is_ready(opened(os.O_RDONLY)) is True


@pytest.mark.usefixtures("without_ofd_locks")
def test_checking_a_flock_leaves_none(opened: Open) -> None:
    is_ready(opened(os.O_RDONLY))
    assert try_lock(opened(os.O_RDWR)) is True
