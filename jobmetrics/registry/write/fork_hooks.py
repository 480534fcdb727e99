"""What the writers of a process do around a fork: the hooks are here, once.

All that can be done before a fork is done there. In the child each Python object that is touched costs a copied page,
two or three microseconds each: its hook is one function, which puts in force what its parent has prepared.
"""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import weakref
from os import close, getpid
from threading import get_ident
from typing import Protocol

from jobmetrics.registry import files
from jobmetrics.registry.cells import Row
from jobmetrics.registry.write.process import ProcessState

FORK_WAIT = 10.0  # seconds a fork waits for a thread in the slow path, which is bounded: a hang guard


class Follower(Protocol):
    """Something that has a state in each process."""

    process: ProcessState

    def before_fork(self) -> Beginning | None:
        """In the parent, in the thread that forks: what the child begins with; None when it cannot be told now."""

    def after_fork_in_parent(self) -> None:
        """In the same thread, once after each `before_fork` that told something, also when there was no fork."""

    def begin_anew(self) -> None:
        """In a child for which nothing was prepared, since a thread was in the slow path."""


# A follower, its state in the child, the row that its series record into with the cells and, if a slot was leased
# for the child, the word for its pid; rows whose values are the parent's, if any. All are looked up before the fork.
Beginning = tuple[Follower, ProcessState, Row, "memoryview[float]", "memoryview[int] | None", "list[Row] | None"]

_followers: list[weakref.ref[Follower]] = []

pid = getpid()  # of the process that all of this is true of
count = 0  # forks between this process and the one that imported this
main_thread = threading.main_thread().ident

_forking: int | None = None  # the thread that prepared what follows
_told: list[weakref.ref[Follower]] = []  # another thread may make one more follower before the fork
_nested = 0  # forks within that one, by a signal handler or another library's hook: nothing is prepared for them
_beginnings: list[Beginning] = []
_left: list[int] = []  # descriptors that the child is to close


def follow(follower: Follower) -> None:
    """Tell it of forks for as long as it lives."""
    global _followers  # another list each time: a fork in another thread may be walking this one
    _followers = [*(known for known in _followers if known() is not None), weakref.ref(follower)]


def _before_fork() -> None:
    global _forking, _told, _nested, _beginnings
    if not _followers:
        return
    if _forking == get_ident():
        _nested += 1
        return
    told = _followers
    beginnings: list[Beginning] = []
    try:
        if _tell_all(told, beginnings) and files.lock.acquire(timeout=FORK_WAIT):
            slots = [beginning[1].slot for beginning in beginnings]
            leases = [slot.lock_fd for slot in slots if slot is not None]
            _left[:] = files.ours(besides=leases)
            _told, _beginnings = told, beginnings
            _forking = get_ident()  # last: with it all of the above is in force
    finally:
        if _forking != get_ident():  # a thread is in the slow path, maybe for good
            for beginning in beginnings:
                beginning[0].after_fork_in_parent()


def _tell_all(followers: list[weakref.ref[Follower]], beginnings: list[Beginning]) -> bool:
    for known in followers:
        follower = known()
        if follower is not None:
            beginning = follower.before_fork()
            if beginning is None:
                return False
            beginnings.append(beginning)
    return True


def _after_fork_in_parent() -> None:
    global _forking, _nested, _beginnings
    if _forking != get_ident():
        return
    if _nested:
        _nested -= 1
        return
    beginnings, _beginnings = _beginnings, []  # before a thread that waits for these locks prepares its own
    _forking = None
    files.lock.release()
    for beginning in beginnings:
        beginning[0].after_fork_in_parent()


def _after_fork_in_child() -> None:
    global pid, count, main_thread, _forking
    pid = getpid()
    count += 1
    thread = get_ident()
    if main_thread != thread:
        main_thread = thread  # the only thread that a child begins with
    if _forking != thread or _nested or _told is not _followers:
        _begin_anew()
        return
    for follower, process, row, cells, pid_word, emptied in _beginnings:
        follower.process = process
        row.cells = cells
        if pid_word is not None:
            pid_word[0] = pid | (pid ^ 0xFFFFFFFF) << 32  # layout.pid_word, without the pages of a call
        if emptied is not None:
            for parents_own in emptied:
                parents_own.empty()
    for fd in _left:
        try:
            close(fd)
        except OSError:
            pass  # closed by somebody else
    _forking = None
    files.lock.release()


def catch_up() -> None:
    """In a process that a library in C has forked: no hook was called, and its parent's slot is still its own, too."""
    global pid, count
    now = getpid()
    if pid != now:
        pid = now
        count += 1
        _begin_anew()


def _begin_anew() -> None:
    """In a child for which nothing was prepared: nobody follows forks, or a thread was in the slow path."""
    global _forking, _nested
    _forking, _nested = None, 0
    files.lock = threading.RLock()
    for fd in files.ours(besides=()):
        with contextlib.suppress(OSError):  # closed by somebody else
            close(fd)
    files.noted.clear()
    for known in _followers:
        follower = known()
        if follower is not None:
            follower.begin_anew()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


class Settling(Protocol):
    """Something that has an end."""

    def settle(self) -> None:
        """Called in the process that asked for it, once or twice, before it ends."""


def settle_at_exit(settling: Settling) -> None:
    """Have it settled where this process ends."""
    known = weakref.ref(settling)

    def settle() -> None:
        found = known()
        if found is not None:
            found.settle()

    atexit.register(settle)
    multiprocessing = sys.modules.get("multiprocessing.util")
    if multiprocessing is not None:  # its children leave by os._exit, after these
        multiprocessing.Finalize(None, settle, exitpriority=0)
