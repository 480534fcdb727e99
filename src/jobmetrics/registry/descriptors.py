"""The descriptors of the directory's files that this process has open, so that a forked child can let go of them.

A child that kept one would keep its parent's lock alive: the lease of a slot, or the lock of the index.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Collection, Iterator

_open: dict[int, tuple[int, int]] = {}  # descriptor: device and inode


def opened(fd: int) -> int:
    """Note a descriptor that was just opened; it is handed back. Raises OSError when it is not open."""
    info = os.fstat(fd)
    _open[fd] = (info.st_dev, info.st_ino)
    return fd


def close(fd: int) -> None:
    """Close a descriptor that was noted. Raises OSError."""
    file = _open.get(fd)
    os.close(fd)  # first: a fork at any moment must find whatever is still open
    if _open.get(fd) is file:  # unless the number is another's by now
        _open.pop(fd, None)


@contextlib.contextmanager
def closing(fd: int) -> Iterator[int]:
    """Close the descriptor at the end, whatever happens."""
    try:
        yield fd
    finally:
        close(fd)


def dismiss(fd: int) -> None:
    """Forget a noted descriptor that was closed in another way, or is somebody else's by now."""
    _open.pop(fd, None)


def close_inherited(kept: Collection[int]) -> None:
    """In a forked child: close what the parent had open, unless the number is somebody else's by now.

    kept: the descriptors that were opened for the child.
    """
    if len(_open) == len(kept):
        return
    for fd in _open.keys() - kept:
        file = _open.pop(fd)
        try:
            info = os.fstat(fd)
            if (info.st_dev, info.st_ino) == file:
                os.close(fd)
        except OSError:
            pass  # closed by somebody else
