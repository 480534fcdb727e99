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
        slots = directory.slots()
        for number in slots:
            if not _is_free(directory, number):
                raise SlotsHeld(f"{slot_name(number)} is held by a living process; stop the workers first")
        removed = 0
        # The index goes first: a process that starts meanwhile makes a new one and never reads a slot of the old.
        if index is not None and same_file(index, directory.file(INDEX_NAME)):
            os.unlink(directory.file(INDEX_NAME))
            removed += 1
        removed += sum(_remove_free(directory, number) for number in slots)
        for name in os.listdir(directory.path):
            if SET_ASIDE_SUFFIX in name:
                os.unlink(directory.file(name))
                removed += 1
    return removed


def _open(directory: Directory, name: str, held: contextlib.ExitStack) -> int | None:
    try:
        fd = directory.open(name, os.O_RDWR)
    except FileNotFoundError:
        return None
    held.callback(close, fd)
    return fd


def _is_free(directory: Directory, number: int) -> bool:
    """Whether no process holds the slot. One descriptor at a time: a directory may have any number of slots."""
    with contextlib.ExitStack() as held:
        fd = _open(directory, slot_name(number), held)
        return fd is None or try_lock(fd)


def _remove_free(directory: Directory, number: int) -> bool:
    """Remove a slot under its lock. A process that has leased it since keeps it, and moves to the new index."""
    with contextlib.ExitStack() as held:
        fd = _open(directory, slot_name(number), held)
        if fd is None or not try_lock(fd) or not same_file(fd, directory.file(slot_name(number))):
            return False
        os.unlink(directory.file(slot_name(number)))
    return True
