"""Descriptors that a forked child closes, and kernel locks on files."""

from __future__ import annotations

import contextlib
import os
import struct
import threading
import time
from collections.abc import Callable, Iterator

# Module-level, not in the runtime: descriptors belong to the process. A forked child must close those of every runtime,
# or its parent's leases would outlive the parent.

# Held while a descriptor is opened and noted, and during a fork: the child then knows every descriptor it inherits.
lock = threading.RLock()

# Device and inode by descriptor, None until they are known.
noted: dict[int, tuple[int, int] | None] = {}


def open_noted(path: str, flags: int, mode: int = 0o777) -> int:
    """Open a file and note its descriptor. Raises OSError."""
    with lock:
        fd = os.open(path, flags, mode)
        noted[fd] = None  # before fstat, which may fail
        info = os.fstat(fd)
        noted[fd] = (info.st_dev, info.st_ino)
    return fd


def close(fd: int) -> None:
    """Close a noted descriptor. Raises OSError."""
    with lock:
        file = noted.get(fd)
        os.close(fd)
        if noted.get(fd) is file:  # unless another file has the number by now
            noted.pop(fd, None)


@contextlib.contextmanager
def closing(fd: int) -> Iterator[int]:
    """Close the descriptor at the end of the block."""
    try:
        yield fd
    finally:
        close(fd)


def open_descriptors() -> list[int]:
    """Return the noted descriptors that are still open on their file, and forget the others.

    A program that becomes a daemon closes descriptors, and the system reuses their numbers.
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
    """In a forked child: forget the parent's descriptors and return them, for the caller to close.

    A thread of the parent may have held the lock, so the child makes a new one.
    """
    global lock
    lock = threading.RLock()
    inherited = open_descriptors()
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

RETRY_INTERVAL = 0.002  # seconds between the first two tries for a held lock; the interval grows up to
LONGEST_RETRY_INTERVAL = 0.05  # seconds


def try_lock(fd: int) -> bool:
    """Take the exclusive lock of a file that is open for writing. Returns False when another process holds it.

    Raises:
        OSError: when the file system does not support such locks.
    """
    try:
        if _OFD_SETLK is not None:
            fcntl.fcntl(fd, _OFD_SETLK, _HOLD)
        else:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, depending on the system
        return False
    return True


def lock_within(fd: int, seconds: float) -> bool:
    """Like `try_lock`, retried for up to `seconds`."""
    return _within(lambda: try_lock(fd), seconds)


def lock_directory_within(fd: int, seconds: float) -> bool:
    """Take the exclusive lock of an open directory, retrying for up to `seconds`.

    flock, since a directory cannot be opened for writing.
    """
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
        # Many waiting processes would otherwise take the processor from the one that holds the lock.
        time.sleep(min(interval, left))
        interval = min(interval * 1.5, LONGEST_RETRY_INTERVAL)
    return True


def mark_ready(fd: int) -> None:
    """Mark the file of a held lock as ready for readers. With flock, the lock itself is the mark.

    Raises:
        OSError: when the file system does not support such locks.
    """
    if _OFD_SETLK is not None:
        fcntl.fcntl(fd, _OFD_SETLK, _READY)


def is_ready(fd: int) -> bool:
    """Whether another process holds the lock and has marked the file as ready, on a read-only descriptor.

    With OFD locks this takes no lock. With flock it takes the shared lock and releases it.

    Raises:
        OSError: when the file system does not support such locks.
    """
    if _OFD_GETLK is not None:
        answer = fcntl.fcntl(fd, _OFD_GETLK, _READY)
        return bool(_FLOCK.unpack(answer)[0] != fcntl.F_UNLCK)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    fcntl.flock(fd, fcntl.LOCK_UN)
    return False
