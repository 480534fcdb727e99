"""The descriptors of the directory's files that this process has open, so that a forked child can let go of them.

A child that kept one would keep its parent's lock alive: the lease of a slot, or the lock of the index.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Collection, Iterator

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


def ours(*, besides: Collection[int]) -> list[int]:
    """The noted descriptors that are still what they were; the others are forgotten.

    A daemoniser closes them, and so does a forked child: their numbers serve again.
    """
    for fd, file in noted.copy().items():
        if fd in besides:
            continue
        try:
            info = os.fstat(fd)
        except OSError:
            del noted[fd]
            continue
        if file is not None and file != (info.st_dev, info.st_ino):
            del noted[fd]
    return [fd for fd in noted if fd not in besides]
