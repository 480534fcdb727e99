"""Descriptors that survive a fork safely, and kernel locks on files."""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator

# Held while a descriptor is opened and noted, and over a fork: a child knows of each that it inherits.
lock = threading.RLock()

# Descriptor: device and inode, None until they are known. A forked child has its parent's as well, closed.
noted: dict[int, tuple[int, int] | None] = {}


def open_noted(path: str, flags: int, mode: int = 0o777) -> int:
    """Open a file and note its descriptor. Raises OSError."""
    with lock:
        fd = os.open(path, flags, mode)
        noted[fd] = None  # a fork at any moment must find whatever is open
        info = os.fstat(fd)
        noted[fd] = (info.st_dev, info.st_ino)
    return fd


def close(fd: int) -> None:
    """Close a descriptor that was noted. Raises OSError."""
    with lock:
        file = noted.get(fd)
        os.close(fd)
        if noted.get(fd) is file:  # unless the number is another's by now
            noted.pop(fd, None)


@contextlib.contextmanager
def closing(fd: int) -> Iterator[int]:
    """Close the descriptor at the end, whatever happens."""
    try:
        yield fd
    finally:
        close(fd)


def ours() -> list[int]:
    """The noted descriptors that are still what they were; the others are forgotten.

    A daemoniser closes them, and so does a forked child: their numbers serve again.
    """
    for fd, file in noted.copy().items():
        try:
            info = os.fstat(fd)
        except OSError:
            del noted[fd]
            continue
        if file is not None and file != (info.st_dev, info.st_ino):
            del noted[fd]
    return list(noted)


def forget_inherited() -> list[int]:
    """In a forked child: the descriptors that its parent had open, for the caller to close.

    A thread of the parent may have held the lock: the child has another one.
    """
    global lock
    lock = threading.RLock()
    inherited = ours()
    noted.clear()
    return inherited


try:
    import fcntl
except ImportError:  # Windows, where nothing is recorded and the import must not fail
    fcntl = None  # type: ignore[assignment]

_FLOCK = struct.Struct("@hhqqi")  # struct flock with a 64-bit off_t: type, whence, start, len, pid
_OFD_SETLK: int | None = getattr(fcntl, "F_OFD_SETLK", None)
_OFD_GETLK: int | None = getattr(fcntl, "F_OFD_GETLK", None)
_HOLD = _FLOCK.pack(getattr(fcntl, "F_WRLCK", 0), os.SEEK_SET, 0, 1, 0)  # the file's first byte
_READY = _FLOCK.pack(getattr(fcntl, "F_WRLCK", 0), os.SEEK_SET, 1, 1, 0)  # its second

RETRY_INTERVAL = 0.002  # seconds between the first tries for a lock that someone holds, growing up to
LONGEST_RETRY_INTERVAL = 0.05


def try_lock(fd: int) -> bool:
    """Take the exclusive lock of the file, on a descriptor opened for writing; False when someone holds it.

    Raises:
        OSError: when the file system has no such locks.
    """
    try:
        if _OFD_SETLK is not None:
            fcntl.fcntl(fd, _OFD_SETLK, _HOLD)
        else:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, by the system
        return False
    return True


def lock_within(fd: int, seconds: float) -> bool:
    """Like `try_lock`, tried again for so long at the most."""
    return _within(lambda: try_lock(fd), seconds)


def lock_directory_within(fd: int, seconds: float) -> bool:
    """The exclusive lock of an open directory, which cannot be opened for writing: flock has no need of that."""
    return _within(lambda: _try_flock(fd), seconds)


def _try_flock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _within(attempt: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    interval = RETRY_INTERVAL
    while not attempt():
        left = deadline - time.monotonic()
        if left <= 0:
            return False
        # Many processes that wait would otherwise take the processor from the one that they wait for.
        time.sleep(min(interval, left))
        interval = min(interval * 1.5, LONGEST_RETRY_INTERVAL)
    return True


def say_ready(fd: int) -> None:
    """The holder of the lock says that its file is in order. With flock, holding it has to do.

    Raises:
        OSError: when the file system has no such locks.
    """
    if _OFD_SETLK is not None:
        fcntl.fcntl(fd, _OFD_SETLK, _READY)


def is_locked(fd: int) -> bool:
    """Whether anyone else holds the lock, asked on a read-only descriptor.

    With OFD locks the question disturbs nobody. With flock it takes the shared lock for a moment.

    Raises:
        OSError: when the file system has no such locks.
    """
    return _is_held(fd, _HOLD)


def is_ready(fd: int) -> bool:
    """Whether a holder of the lock has said that its file is in order; asked as `is_locked` does."""
    return _is_held(fd, _READY)


def _is_held(fd: int, question: bytes) -> bool:
    if _OFD_GETLK is not None:
        answer = fcntl.fcntl(fd, _OFD_GETLK, question)
        return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False
