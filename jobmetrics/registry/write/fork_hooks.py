"""The hooks around a fork. They are registered with the first participant: the process's first writer."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import threading
import weakref
from os import getpid
from threading import get_ident
from typing import Protocol

from jobmetrics.registry import files

FORK_WAIT = 10.0  # seconds that a fork waits for a thread in the slow path; never reached unless that thread hangs


class Participant(Protocol):
    """A fork participant with per-process state."""

    def before_fork(self) -> bool:
        """In the forking thread: keep other threads out of the slow path. Returns False when one does not leave it."""

    def after_fork_in_parent(self) -> None:
        """In the same thread, after each `before_fork` that returned True, also when the fork failed."""

    def after_fork_in_child(self) -> None:
        """In the child, after a `before_fork` that returned True."""

    def reset_in_child(self) -> None:
        """In a child of an unprepared fork: a thread of the parent may have been in the slow path."""


class ForkPlan:
    """The preparation of one thread's fork, so that the child has little to do.

    The kernel copies a page for each Python object that the child touches, which takes two or three microseconds each.

    known: all participants; participants: those that returned True from `before_fork`; inherited: descriptors for the
    child to close; nested: unprepared forks within this one, by a signal handler or another library's hook.
    """

    def __init__(self, known: list[weakref.ref[Participant]]) -> None:
        self.thread = get_ident()
        self.known = known
        self.participants: list[Participant] = []
        self.inherited: list[int] = []
        self.nested = 0


class ForkHooks:
    """The participants of this process's forks.

    pid: of the process; count: forks between this process and the one that imported this module; main_thread: ident of
    the process's first thread.
    """

    def __init__(self) -> None:
        self.pid = getpid()
        self.count = 0
        self.main_thread = threading.main_thread().ident
        self._participants: list[weakref.ref[Participant]] = []
        self._plan: ForkPlan | None = None

    def join(self, participant: Participant) -> None:
        """Call the participant at each fork until it is garbage-collected."""
        if not self._participants:
            if hasattr(os, "register_at_fork"):
                os.register_at_fork(
                    before=self.before, after_in_parent=self.after_in_parent, after_in_child=self.after_in_child
                )
            self.pid, self.main_thread = getpid(), threading.main_thread().ident  # the hooks saw no earlier fork
        # A new list each time: a fork in another thread may be iterating over this one.
        self._participants = [*(known for known in self._participants if known() is not None), weakref.ref(participant)]

    def before(self) -> None:
        if self._plan is not None and self._plan.thread == get_ident():
            self._plan.nested += 1
            return
        plan = ForkPlan(self._participants)
        try:
            if self._prepare(plan) and files.lock.acquire(timeout=FORK_WAIT):
                plan.inherited = files.open_descriptors()
                self._plan = plan
        finally:
            if self._plan is not plan:  # a thread stayed in the slow path
                for participant in plan.participants:
                    participant.after_fork_in_parent()

    def _prepare(self, plan: ForkPlan) -> bool:
        for known in plan.known:
            participant = known()
            if participant is not None:
                if not participant.before_fork():
                    return False
                plan.participants.append(participant)
        return True

    def after_in_parent(self) -> None:
        plan = self._plan
        if plan is None or plan.thread != get_ident():
            return
        if plan.nested:
            plan.nested -= 1
            return
        self._plan = None  # before the release: a waiting thread then prepares its own fork
        files.lock.release()
        for participant in plan.participants:
            participant.after_fork_in_parent()

    def after_in_child(self) -> None:
        plan, self._plan = self._plan, None
        self.main_thread = get_ident()  # a child begins with this thread alone
        if plan is None or plan.thread != self.main_thread or plan.nested or plan.known is not self._participants:
            self._reset_in_child()
            return
        self.pid = getpid()
        self.count += 1
        for participant in plan.participants:
            participant.after_fork_in_child()
        for fd in plan.inherited:
            try:
                os.close(fd)
            except OSError:
                pass  # already closed
        files.lock.release()

    def catch_up(self) -> None:
        """Reset the state in a process forked by a C library, which calls no hook: its slot is still its parent's."""
        if self.pid != getpid():
            self._plan = None
            self._reset_in_child()

    def _reset_in_child(self) -> None:
        self.pid = getpid()
        self.count += 1
        inherited = files.forget_inherited()
        for known in self._participants:
            participant = known()
            if participant is not None:
                participant.reset_in_child()
        for fd in inherited:
            with contextlib.suppress(OSError):  # already closed
                os.close(fd)


# Module-level, not in the runtime: os.register_at_fork cannot be undone, and a fork concerns every runtime's writers.
hooks = ForkHooks()


class Settling(Protocol):
    """An object with work to do at the process's end."""

    def settle(self) -> None:
        """Called once or twice before the process ends, only in the process that registered it."""


def settle_at_exit(settling: Settling) -> None:
    """Call `settling.settle` at the end of this process."""
    known = weakref.ref(settling)

    def settle() -> None:
        found = known()
        if found is not None:
            found.settle()

    atexit.register(settle)
    multiprocessing = sys.modules.get("multiprocessing.util")
    if multiprocessing is not None:  # its children call os._exit, after these finalisers
        multiprocessing.Finalize(None, settle, exitpriority=0)
