"""The processes of a run: start them, wait until they are ready, and end all of them in any case."""

from __future__ import annotations

import os
import secrets
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, final

import redis

from demo import DemoError
from demo.ledger import HOME_VARIABLE, Run
from demo.redis_cleanup import celery_url, client, worker_key
from jobmetrics.errors import JobmetricsError
from jobmetrics.exporter.client import read_metrics

ROOT = Path(__file__).parents[1]
FOREIGN = ("JOBMETRICS_", "CELERY", "RQ_", "SHOP_")
"""Prefixes of environment variables that would change what the processes do. They are removed, except `KEPT`."""
KEPT = ("RQ_KEY_PREFIX",)
SERVER_FOLDERS = ("/usr/sbin", "/usr/local/sbin", "/usr/local/bin", "/opt/homebrew/bin")
"""Folders to search for redis-server after PATH: on Debian, the PATH of ordinary users has no /usr/sbin."""
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

CELERY_PROCESSES = 2
REFRESH_SECONDS = 0.5
"""Seconds between the exporter's readings of the queues: less than its default, because a user watches."""
READY_SECONDS = 60.0
TERM_SECONDS = 10.0
"""Seconds for a warm shutdown, in which running jobs may end."""
SECOND_TERM_SECONDS = 5.0
"""Seconds after a second SIGTERM, with which RQ and Celery end their running jobs."""
POLL_SECONDS = 0.02
TAIL_LINES = 20


# ------------------------------------------------------------------ signals


class Interrupted(Exception):
    """A signal asked the demo to end."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


@final
class Interrupts:
    """A context in which `check` and `pause` raise `Interrupted` after SIGINT, SIGTERM or SIGHUP.

    The signal handler itself does not raise: it could interrupt the clean-up, or the start of a process before its pid
    is known. It stores the signal's number and writes a byte, which ends `pause` at once.
    """

    def __init__(self) -> None:
        self.signum: int | None = None
        self.count = 0
        self._previous: dict[int, Any] = {}
        self._read_end, self._write_end = -1, -1

    def __enter__(self) -> Interrupts:
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        os.set_blocking(self._write_end, False)
        for number in SIGNALS:
            self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        os.close(self._read_end)
        os.close(self._write_end)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        self.count += 1
        try:
            os.write(self._write_end, b"!")
        except BlockingIOError:
            pass  # the pipe is full of signals already

    def check(self) -> None:
        """Raise `Interrupted` if a signal has arrived since the last `accept`."""
        if self.signum is not None:
            raise Interrupted(self.signum)

    def pause(self, seconds: float) -> None:
        """Wait, or raise `Interrupted` as soon as a signal arrives."""
        self.check()
        select.select([self._read_end], [], [], seconds)
        self.check()

    def accept(self) -> None:
        """Forget the signals that have arrived."""
        self.signum, self.count = None, 0
        try:
            while os.read(self._read_end, 512):
                pass
        except BlockingIOError:
            pass  # the pipe is empty


# ------------------------------------------------------------------ processes


@dataclass(eq=False)
class Process:
    """One process, leader of a new session, with its output in a file."""

    name: str
    popen: subprocess.Popen[bytes]
    log: Path
    serves: bool = False
    reaped: bool = False

    @property
    def ended(self) -> bool:
        """Whether it has ended. It is not reaped yet, so its pid cannot be reused before `reap`."""
        if self.popen.returncode is not None:
            return True
        if not hasattr(os, "waitid"):  # macOS before Python 3.13
            return self.popen.poll() is not None
        return os.waitid(os.P_PID, self.popen.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None

    def signal(self, signum: int) -> None:
        """Send it a signal, but not its children."""
        if not self.ended:
            _kill(self.popen.pid, signum)

    def tail(self) -> str:
        """The end of its output."""
        lines = self.log.read_text(encoding="utf-8", errors="replace").splitlines()
        return "The end of its log:\n" + "\n".join(lines[-TAIL_LINES:])

    def reap(self) -> None:
        """Kill it and what is left of its session, and collect its exit code."""
        if self.reaped:
            return
        self.signal(signal.SIGKILL)
        while not self.ended:
            time.sleep(POLL_SECONDS)
        # An RQ work-horse may have outlived it, in another process group but in the same session.
        for pid in _session(self.popen.pid):
            _kill(pid, signal.SIGKILL)
        self.popen.wait()
        self.reaped = True


class Processes:
    """All processes of a run. impatient: whether the user has asked a second time to end."""

    def __init__(
        self, home: Path, environment: Mapping[str, str], impatient: Callable[[], bool] = lambda: False
    ) -> None:
        self._home, self._environment, self._impatient = home, environment, impatient
        self._running: list[Process] = []

    def start(
        self, name: str, arguments: Sequence[str], variables: Mapping[str, str] | None = None, *, serves: bool = False
    ) -> Process:
        """Start a process in the run's directory. serves: whether the others need it, so that it ends last."""
        path = self._home / f"{name.replace(' ', '-')}.log"
        with path.open("wb") as log:
            try:
                popen = subprocess.Popen(
                    arguments,
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    cwd=self._home,
                    env={**self._environment, **(variables or {})},
                    start_new_session=True,
                )
            except OSError as error:
                raise DemoError(f"the {name} could not be started: {error}") from error
        process = Process(name, popen, path, serves)
        self._running.append(process)
        return process

    def python(self, name: str, *arguments: str, **variables: str) -> Process:
        """Start a module of this Python with arguments."""
        return self.start(name, [sys.executable, "-m", *arguments], variables)

    def check(self) -> None:
        """Raise DemoError, with the end of its log, if one has ended by itself."""
        for process in self._running:
            if process.ended:
                process.reap()
                code = process.popen.returncode
                raise DemoError(f"the {process.name} ended by itself (exit code {code}). {process.tail()}")

    def wait_for(self, process: Process, ready: Callable[[], bool], pause: Callable[[float], None]) -> None:
        """Wait until a process is ready. After READY_SECONDS, raise DemoError with the end of its log."""
        deadline = time.monotonic() + READY_SECONDS
        while not ready():
            self.check()
            if time.monotonic() > deadline:
                raise DemoError(f"the {process.name} is not ready after {READY_SECONDS:g} seconds. {process.tail()}")
            pause(POLL_SECONDS)

    def stop(self, *processes: Process) -> None:
        """End these processes together: SIGTERM, a second SIGTERM, then SIGKILL to each session."""
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
        """End all processes; those that serve the others end last."""
        self.stop(*(process for process in self._running if not process.serves))
        self.stop(*self._running)


def _session(leader: int) -> list[int]:
    """The pids of a session without its leader, from /proc or, where there is none, from ps."""
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
            continue  # it has ended, or belongs to another user
    return found


def _kill(pid: int, signum: int) -> None:
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        pass  # it has ended


# ------------------------------------------------------------------ the services


def environment_of(home: Path, outer: Mapping[str, str]) -> dict[str, str]:
    """The variables of every process of the run."""
    kept = {name: value for name, value in outer.items() if name in KEPT or not name.startswith(FOREIGN)}
    # The processes have another working directory, in which relative paths would be wrong.
    paths = [str(Path(path).absolute()) for path in kept.get("PYTHONPATH", "").split(os.pathsep) if path]
    temporary = home / "tmp"
    temporary.mkdir(exist_ok=True)
    return {
        **kept,
        HOME_VARIABLE: str(home),
        "PYTHONPATH": os.pathsep.join([str(ROOT / "examples"), str(ROOT), *paths]),
        "JOBMETRICS_DIR": str(home / "registry"),
        "TMPDIR": str(temporary),
        "PYTHONUNBUFFERED": "1",
    }


def start_exporter(processes: Processes, run: Run) -> tuple[Process, str]:
    """Start the exporter; returns it with the URL of its metrics."""
    address = f"127.0.0.1:{_free_port()}"
    arguments, variables = ["--listen", address], {}
    if run.redis_url is not None:
        arguments += ["--celery-queue", run.celery_queue, "--rq-queue", run.rq_queue]
        arguments += ["--refresh", str(REFRESH_SECONDS)]
        # Not options: the URLs may contain a password, and other users can read command lines.
        variables["JOBMETRICS_EXPORTER_CELERY_BROKER"] = celery_url(run.redis_url)
        variables["JOBMETRICS_EXPORTER_RQ_URL"] = run.redis_url
    return processes.python("exporter", "jobmetrics", "exporter", *arguments, **variables), f"http://{address}/metrics"


def start_celery(processes: Processes, run: Run) -> Process:
    """Start a prefork worker of the examples' application. Its setting `imports` instruments it."""
    options = ["--pool", "prefork", "--concurrency", str(CELERY_PROCESSES), "--queues", run.celery_queue]
    options += ["--hostname", f"demo-{run.id}@%h", "--loglevel", "WARNING"]
    # There is no other worker, and each message costs time with the filesystem transport.
    options += ["--without-gossip", "--without-mingle", "--without-heartbeat"]
    return processes.python("Celery worker", "celery", "-A", "demo.workload", "worker", *options)


def start_rq(processes: Processes, run: Run) -> Process:
    """Start a worker of the instrumented class, which forks a work-horse for each job."""
    options = ["--worker-class", "jobmetrics.rq.Worker", "--job-class", "demo.workload.LedgerJob"]
    variables = {"RQ_REDIS_URL": run.redis_url or ""}  # not an option, as above
    return processes.python(
        "RQ worker", "rq.cli", "worker", *options, "--name", run.rq_worker, run.rq_queue, **variables
    )


def start_producer(processes: Processes) -> Process:
    """Start the process that sends jobs until SIGTERM."""
    return processes.python("producer", "demo.workload")


def start_redis(processes: Processes, server: str, home: Path, pause: Callable[[float], None]) -> str:
    """Start a private server that stores nothing on disk, wait until it answers, and return its URL."""
    folder = home / "server"
    folder.mkdir()
    port = _free_port()
    # The server needs a password: RQ's jobs are pickles, so a client that can write to it can run code as this user.
    # The password is in a file, because other users can read command lines.
    password = secrets.token_hex()
    options = folder / "redis.conf"
    options.touch(mode=0o600)
    options.write_text(
        f'bind 127.0.0.1\nport {port}\nrequirepass {password}\nsave ""\nappendonly no\ndaemonize no\ndir "{folder}"\n',
        encoding="utf-8",
    )
    process = processes.start("Redis", [server, str(options)], serves=True)
    url = f"redis://:{password}@127.0.0.1:{port}/0"

    def answers() -> bool:
        """Whether this process answers, and not another server that took the port first."""
        try:
            with client(url) as connection:
                return int(connection.info("server")["process_id"]) == process.popen.pid
        except redis.RedisError:
            return False

    processes.wait_for(process, answers, pause)
    return url


def redis_server(environment: Mapping[str, str]) -> str | None:
    """The path of redis-server; None if it is not installed."""
    path = os.pathsep.join((environment.get("PATH", os.defpath), *SERVER_FOLDERS))
    return shutil.which("redis-server", path=path)


def exporter_answers(url: str) -> bool:
    """Whether /metrics can be read."""
    try:
        read_metrics(url)
    except JobmetricsError:
        return False
    return True


def rq_listens(run: Run) -> bool:
    """Whether the RQ worker has registered."""
    try:
        with client(run.redis_url or "") as connection:
            return bool(connection.exists(worker_key(run.rq_worker)))
    except redis.RedisError:
        return False


def _free_port() -> int:
    """A loopback port on which no process listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
