"""Processes for these tests: forked children that record, take commands, and are stopped and killed.

Nothing here records in the test's own process, so that no test leaves a writer behind for the next.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from multiprocessing.connection import wait as wait_for
from pathlib import Path
from typing import Any, NoReturn

import psutil
import pytest

from jobmetrics import families, settings
from jobmetrics.events import SUCCESS, Ended, Job, Lost, Started
from jobmetrics.families import COUNTER, GAUGE, HISTOGRAM
from jobmetrics.instruments import BoundCounter, BoundGauge, BoundHistogram, Labelled, define
from jobmetrics.job_context import Execution
from jobmetrics.recorder import Recorder
from jobmetrics.registry.directory import slot_number
from jobmetrics.registry.write import session
from jobmetrics.registry.write.writer import Writer
from jobmetrics.settings import Settings

HANG_SECONDS = 60.0  # a limit for hung tests; no test comes near it

HITS = define(COUNTER, "hits", "Counted by tests.", ("who",))
LEVEL = define(GAUGE, "level", "A live gauge.", ("who",), mode=families.LIVE_SUM)
HIGHEST = define(GAUGE, "highest", "A max gauge.", ("who",), mode=families.MAX)
LOWEST = define(GAUGE, "lowest", "A min gauge.", ("who",), mode=families.MIN)
LATEST = define(GAUGE, "latest", "A most recent gauge.", ("who",), mode=families.MOST_RECENT)
SIZES = define(HISTOGRAM, "sizes", "A histogram.", ("who",), buckets=(1.0, 2.0, 5.0))


class Clock:
    """A clock that the test advances."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Worker:
    """What one process records with. Its writer's clock stands still: `later` makes checks and retries due, and ends
    a job so that dropped updates appear in the directory.

    patient: wait for the index lock without a limit, so that a busy machine changes no count; off in tests
    of the wait itself.
    """

    def __init__(self, path: Path, *, patient: bool = True, **more: Any) -> None:
        active_settings = Settings(dir=str(path), **{"propagate_errors": True, **more})
        settings.use(active_settings)
        if patient:
            assert hasattr(session, "LOCK_WAIT")
            setattr(session, "LOCK_WAIT", HANG_SECONDS)  # noqa: B010 - a constant to mypy
        self.clock = Clock()
        self.writer = Writer(active_settings, self.clock)
        self.recorder = Recorder(self.writer, active_settings, clock=lambda: time.perf_counter() + self.clock.now)
        self.hits = Labelled(BoundCounter, HITS, self.writer)
        self.levels = Labelled(BoundGauge, LEVEL, self.writer)
        self.highest = Labelled(BoundGauge, HIGHEST, self.writer)
        self.lowest = Labelled(BoundGauge, LOWEST, self.writer)
        self.latest = Labelled(BoundGauge, LATEST, self.writer)
        self.sizes = Labelled(BoundHistogram, SIZES, self.writer)
        self.running: dict[str, Execution | None] = {}

    def hit(self, who: str = "all", amount: float = 1.0, times: int = 1) -> None:
        bound = self.hits.at((who,))
        for _ in range(times):
            bound.inc(amount)

    def level(self, value: float, who: str = "all") -> None:
        self.levels.at((who,)).set(value)

    def lower(self, who: str = "all") -> None:
        self.levels.at((who,)).dec()

    def measure(self, value: float, who: str = "all") -> None:
        self.sizes.at((who,)).observe(value)

    def start(self, name: str, job_type: str = "job") -> None:
        self.running[name] = self.recorder.started(Started(Job("python", job_type, "queue"), name))

    def end(self, name: str, status: str = SUCCESS, error: str | None = None) -> None:
        execution = self.running.pop(name)
        assert execution is not None
        self.recorder.ended(execution, Ended(status, error))

    def lost(self, name: str, job_type: str = "job") -> bool:
        """Report that the process running an execution has died."""
        return self.recorder.lost(Lost(Job("python", job_type, "queue"), name, "failure", "Killed", process_died=True))

    def job(self, name: str = "one", times: int = 1) -> None:
        for _ in range(times):
            self.start(name)
            self.end(name)

    def later(self, seconds: float = 3600.0) -> None:
        """Advance the clock, then run the checks of a job's start."""
        self.clock.now += seconds
        self.writer.tick()

    def resident(self) -> int:
        """Bytes of memory that this process uses."""
        return psutil.Process().memory_info().rss


@dataclass
class Child:
    """A child process and the parent's end of a pipe to it."""

    pid: int
    pipe: Connection
    status: int | None = None

    def ask(self, name: str, *arguments: Any, **keywords: Any) -> Any:
        """Call a method of a serving child, and wait for its result."""
        self.send(name, *arguments, **keywords)
        return self.answer()

    def send(self, name: str, *arguments: Any, **keywords: Any) -> None:
        self.pipe.send((name, arguments, keywords))

    def answer(self) -> Any:
        if not self.pipe.poll(HANG_SECONDS):
            self._fail_as_hung()
        good, value = self.pipe.recv()
        assert good, f"in process {self.pid}: {value}"
        return value

    def signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """Send SIGKILL, and wait until the process has ended."""
        self.signal(signal.SIGKILL)
        assert self.wait() == -signal.SIGKILL

    def stopped(self) -> bool:
        """Wait until the process has stopped itself (True) or has ended (False)."""
        pid, status = os.waitpid(self.pid, os.WUNTRACED)
        assert pid == self.pid
        if os.WIFSTOPPED(status):
            return True
        self.status = os.waitstatus_to_exitcode(status)
        return False

    def wait(self, seconds: float = HANG_SECONDS) -> int:
        """Return the exit status once the process has ended; -N if signal N ended it."""
        if self.status is None:
            fd = os.pidfd_open(self.pid)
            try:
                if not wait_for([fd], seconds):
                    self._fail_as_hung()
            finally:
                os.close(fd)
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.status

    def _fail_as_hung(self) -> NoReturn:
        for process in (psutil.Process(self.pid), *psutil.Process(self.pid).children(recursive=True)):
            process.send_signal(signal.SIGUSR1)  # its threads' tracebacks go to stderr
            time.sleep(0.5)
        self.end()
        pytest.fail(f"process {self.pid} hangs; stderr has its traceback")

    def join(self) -> None:
        """Wait for exit status 0."""
        assert self.wait() == 0, f"process {self.pid} ended with {self.status}; its traceback is on stderr"

    def leave(self) -> None:
        """Ask a serving child to exit."""
        self.pipe.send(None)
        self.join()

    def end(self) -> None:
        """Kill the process if it still runs."""
        if self.status is None:
            with contextlib.suppress(ProcessLookupError, ChildProcessError):
                os.kill(self.pid, signal.SIGKILL)
                os.waitpid(self.pid, 0)
            self.status = -signal.SIGKILL
        self.pipe.close()


def fork(run: Callable[[Connection], object]) -> Child:
    """Start a child that runs a function with its end of a pipe, and exits without clean-up."""
    here, there = Pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        assert sys.__stderr__ is not None
        faulthandler.register(signal.SIGUSR1, sys.__stderr__)
        here.close()
        run_and_exit(lambda: run(there))
    there.close()
    return Child(pid, here)


def fork_without_hooks() -> int:
    """Fork as a library in C does: Python calls no hooks."""
    return int(ctypes.PyDLL(None).fork())


def in_order(*steps: Callable[[], object]) -> Callable[..., None]:
    """One function that runs the steps in order and ignores its arguments."""

    def run(*_: object) -> None:
        for step in steps:
            step()

    return run


def run_and_exit(run: Callable[[], object]) -> None:
    """In a forked child: run, print a traceback on failure, and never return into pytest."""
    status = 1
    try:
        run()
        status = 0
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:  # noqa: BLE001 - nothing may come back into pytest
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


@contextlib.contextmanager
def child(run: Callable[[Connection], object]) -> Iterator[Child]:
    """A child started by `fork`; killed at the end of the block."""
    started = fork(run)
    try:
        yield started
    finally:
        started.end()


@contextlib.contextmanager
def children(runs: Sequence[Callable[[Connection], object]]) -> Iterator[list[Child]]:
    """Several children; killed at the end of the block."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(child(run)) for run in runs]


def serve(target: object, pipe: Connection) -> None:
    """Call methods of the target by name for the parent until it sends None."""
    while True:
        command = pipe.recv()
        if command is None:
            return
        name, arguments, keywords = command
        try:
            answer = getattr(target, name)(*arguments, **keywords)
        except Exception:  # noqa: BLE001 - the parent's test shows it
            pipe.send((False, traceback.format_exc()))
        else:
            pipe.send((True, answer))


def worker(path: Path, **more: Any) -> contextlib.AbstractContextManager[Child]:
    """A worker process that serves the parent's calls; more: settings and the options of `Worker`."""
    return child(lambda pipe: serve(Worker(path, **more), pipe))


def workers(path: Path, count: int, **more: Any) -> contextlib.AbstractContextManager[list[Child]]:
    """Several worker processes."""
    return children([lambda pipe: serve(Worker(path, **more), pipe)] * count)


def in_child(run: Callable[[], object]) -> None:
    """Run a function in a child process that must exit with status 0."""
    with child(lambda _: run()) as started:
        started.join()


def record(path: Path, *asked: tuple[Any, ...], **more: Any) -> None:
    """Record in one process from start to exit: ("hit", "a", 2.0), ("job",), ..."""

    def run() -> None:
        one = Worker(path, **more)
        for name, *arguments in asked:
            getattr(one, name)(*arguments)

    in_child(run)


def names(path: Path) -> list[str]:
    """The names of all files of a directory."""
    return sorted(entry.name for entry in path.iterdir())


def slot_files(path: Path) -> list[str]:
    """The names of all slot files, without those set aside."""
    return [name for name in names(path) if slot_number(name) is not None]
