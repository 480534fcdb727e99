"""The processes of the demo: started, watched, and ended whatever happens."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jobmetrics.demo.errors import DemoError

TERM_SECONDS = 10.0
"""For a warm shutdown: the job that runs may end."""
SECOND_TERM_SECONDS = 5.0
"""For what RQ and Celery do at a second SIGTERM: they end their jobs themselves."""
POLL_SECONDS = 0.02
TAIL_LINES = 20


@dataclass(eq=False)
class Process:
    """One process, leader of a session of its own, with its output in a file."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path
    serves: bool = False
    reaped: bool = False

    @property
    def ended(self) -> bool:
        """Whether it has ended. Asking does not reap it, so that its pid stays its own until `reap`."""
        if self.popen.returncode is not None:
            return True
        if not hasattr(os, "waitid"):  # macOS before Python 3.13
            return self.popen.poll() is not None
        return os.waitid(os.P_PID, self.popen.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def signal(self, signum: int) -> None:
        """Send a signal to it alone."""
        if not self.ended:
            _kill(self.popen.pid, signum)

    def tail(self) -> str:
        """The end of its output."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "\n".join(lines[-TAIL_LINES:])

    def reap(self) -> None:
        """Kill it and what is left of its session, and collect its exit code."""
        if self.reaped:
            return
        self.signal(signal.SIGKILL)
        while not self.ended:
            time.sleep(POLL_SECONDS)
        # It starts nothing any more, but an RQ work-horse may have outlived it: by session, since a
        # work-horse leads a process group of its own.
        for pid in _session(self.popen.pid):
            _kill(pid, signal.SIGKILL)
        self.popen.wait()
        self.reaped = True


class Processes:
    """All of them. `impatient` tells whether the one who waits for the end has asked again."""

    def __init__(self, home: Path, logs: Path, environment: Mapping[str, str], impatient: Callable[[], bool]) -> None:
        self._home, self._logs, self._environment = home, logs, environment
        self._impatient = impatient
        self._running: list[Process] = []

    def start(
        self,
        name: str,
        arguments: Sequence[str],
        environment: Mapping[str, str] | None = None,
        *,
        serves: bool = False,
    ) -> Process:
        """Start a process; `serves` says that the others need it, so that it is the last to be ended.

        Its working directory is the demo's, so that it imports nothing by chance.
        """
        path = self._logs / f"{name.replace(' ', '-')}.log"
        with path.open("wb") as log:
            try:
                popen = subprocess.Popen(
                    arguments,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=self._home,
                    env={**self._environment, **(environment or {})},
                    start_new_session=True,
                )
            except OSError as error:
                raise DemoError(f"the {name} could not be started: {error}") from error
        process = Process(name, popen, path, serves)
        self._running.append(process)
        return process

    def check(self) -> None:
        """Raise DemoError, with the end of its log, if one has ended by itself."""
        for process in self._running:
            if process.ended:
                process.reap()
                raise DemoError(
                    f"the {process.name} ended by itself (exit code {process.popen.returncode}). "
                    f"The end of its log:\n{process.tail()}"
                )

    def stop(self, *processes: Process) -> None:
        """End these, all at one time: SIGTERM, SIGTERM again, SIGKILL to the session."""
        for grace in (TERM_SECONDS, SECOND_TERM_SECONDS):
            for process in processes:
                process.signal(signal.SIGTERM)
            deadline = time.monotonic() + grace
            while not all(process.ended for process in processes):
                if self._impatient() or time.monotonic() > deadline:
                    break
                time.sleep(POLL_SECONDS)
        for process in processes:
            process.reap()
            self._running.remove(process)

    def stop_all(self) -> None:
        """End all, those that serve the others last."""
        self.stop(*(process for process in self._running if not process.serves))
        self.stop(*self._running)


def _session(leader: int) -> list[int]:
    """Pids of the session but its leader's: from /proc where there is one, else from ps."""
    try:
        pids = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    except FileNotFoundError:
        listing = subprocess.run(["ps", "-A", "-o", "pid="], capture_output=True, text=True, check=False)
        pids = [int(word) for word in listing.stdout.split()]
    found = []
    for pid in pids:
        try:
            if pid != leader and os.getsid(pid) == leader:
                found.append(pid)
        except OSError:
            continue  # gone meanwhile, or not ours to ask about
    return found


def _kill(pid: int, signum: int) -> None:
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        pass  # gone meanwhile
