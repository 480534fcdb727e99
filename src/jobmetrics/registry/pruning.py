"""A new generation on request: everything counted so far is forgotten, once nobody holds a slot."""

from __future__ import annotations

import contextlib
import os

from jobmetrics.errors import RegistryError
from jobmetrics.registry.descriptors import close
from jobmetrics.registry.directory import INDEX_NAME, SET_ASIDE_SUFFIX, Directory, same_file, slot_name
from jobmetrics.registry.locks import lock_within, try_lock

LOCK_SECONDS = 5.0


class SlotsHeld(RegistryError):
    """Worker processes hold slots of the directory."""


def prune(directory: Directory) -> int:
    """Remove the index, all slots and what was set aside; the next process that records begins anew.

    Returns how many files were removed.

    Raises:
        SlotsHeld: when a living process holds a slot; nothing was removed then.
        RegistryError: when the directory is missing or not safe, or its index stays locked.
        OSError: when a file cannot be opened or removed.
    """
    directory.check()
    with contextlib.ExitStack() as held:
        index = _open(directory, INDEX_NAME, held)
        if index is not None and not lock_within(index, LOCK_SECONDS):
            raise RegistryError(f"another process keeps the index of {directory.path} locked; try again")
        slots = [number for number in directory.slots() if _open_unheld(directory, number, held)]
        # The index goes first: whoever starts meanwhile makes a new one and never reads a slot of the old.
        names = [INDEX_NAME] if index is not None and same_file(index, directory.file(INDEX_NAME)) else []
        names += [slot_name(number) for number in slots]
        names += [name for name in os.listdir(directory.path) if SET_ASIDE_SUFFIX in name]
        for name in names:
            os.unlink(directory.file(name))
    return len(names)


def _open(directory: Directory, name: str, held: contextlib.ExitStack) -> int | None:
    try:
        fd = directory.open(name, os.O_RDWR)
    except FileNotFoundError:
        return None
    held.callback(close, fd)
    return fd


def _open_unheld(directory: Directory, number: int, held: contextlib.ExitStack) -> bool:
    """Hold a slot ourselves until all are removed; False when it is gone already."""
    fd = _open(directory, slot_name(number), held)
    if fd is not None and not try_lock(fd):
        raise SlotsHeld(f"{slot_name(number)} is held by a living process; stop the workers first")
    return fd is not None
