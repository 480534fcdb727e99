"""Stop or kill a process at its N-th system call, or at its N-th line, in a stretch of code."""

from __future__ import annotations

import fcntl
import functools
import mmap
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from types import FrameType, ModuleType
from typing import Any

from tests.multiprocess.support import Child, child

# The system calls of the registry that touch a file.
_CALLS: tuple[tuple[ModuleType, tuple[str, ...]], ...] = (
    (
        os,
        (
            "open", "close", "read", "write", "pread", "preadv", "pwrite", "pwritev", "posix_fallocate", "ftruncate",
            "truncate", "mkdir", "makedirs", "rename", "replace", "link", "unlink", "remove", "rmdir", "chmod",
            "fchmod", "chown", "fchown", "stat", "lstat", "fstat", "scandir", "listdir", "fsync", "urandom",
        ),
    ),
    (fcntl, ("fcntl", "flock", "lockf")),
    (mmap, ("mmap",)),
)  # fmt: skip

BEFORE, AFTER, LINE = "before the call", "after the call", "at the line"

Step = tuple[str, int]


class Interruption:
    """Act at one step of what a thread of this process does within `armed`."""

    def __init__(self, step: Step, act: Callable[[], object]) -> None:
        self._when, self._at = step
        self._act = act
        self._seen = 0
        self._armed: int | None = None  # the thread

    @contextmanager
    def armed(self) -> Iterator[None]:
        """Count steps in this block."""
        if self._when == LINE:
            sys.settrace(self._trace)
        else:
            self._wrap()
        self._armed = threading.get_ident()
        try:
            yield
        finally:
            self._armed = None
            sys.settrace(None)

    @property
    def seen(self) -> int:
        """The number of steps so far."""
        return self._seen

    def _wrap(self) -> None:
        for module, names in _CALLS:
            for name in names:
                if hasattr(module, name):
                    setattr(module, name, self._wrapped(getattr(module, name)))

    def _wrapped(self, call: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(call)
        def interrupted(*arguments: Any, **keywords: Any) -> Any:
            if self._armed != threading.get_ident():
                return call(*arguments, **keywords)
            if self._when == BEFORE:
                self._count()
            try:
                return call(*arguments, **keywords)
            finally:
                if self._when == AFTER:
                    self._count()

        return interrupted

    def _trace(self, frame: FrameType, event: str, _: object) -> Any:
        if "/jobmetrics/" not in frame.f_code.co_filename:
            return None
        if event == "line" and self._armed == threading.get_ident():
            self._count()
        return self._trace

    def _count(self) -> None:
        self._seen += 1
        if self._seen == self._at:
            self._act()


def interrupted_at(
    when: str,
    victim: Callable[[Interruption, Connection], object],
    *,
    signal_number: int = signal.SIGKILL,
    stride: int = 1,
) -> Iterator[Child]:
    """Signal one child at each step of its armed stretch: at the first, then at every `stride`-th.

    Stop after a child that completed its stretch; that child has ended and is not yielded. A child that was sent
    SIGSTOP stays stopped while the caller has it.
    """

    def send() -> None:
        os.kill(os.getpid(), signal_number)

    at = 1
    while True:
        with child(lambda pipe, at=at: victim(Interruption((when, at), send), pipe)) as started:  # type: ignore[misc]
            stops = signal_number == signal.SIGSTOP
            hit = started.stopped() if stops else started.wait() == -signal_number
            if not hit:
                started.join()
                assert at > stride, "no step was counted"
                return
            yield started
        at += stride
