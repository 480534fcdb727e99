"""Real worker processes, started for a test and ended by it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
END_SECONDS = 20.0  # limit for a hung process


@contextmanager
def process(arguments: list[str], log: Path, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process in the repository's folder; at the end it is interrupted, and killed if it does not exit."""
    with log.open("ab") as output:
        started = subprocess.Popen(
            arguments, cwd=ROOT, env={**os.environ, **environment}, stdout=output, stderr=subprocess.STDOUT
        )
        try:
            yield started
        finally:
            stop(started)


def stop(started: subprocess.Popen[bytes]) -> None:
    """Request a warm shutdown."""
    if started.poll() is None:
        started.send_signal(signal.SIGTERM)
    try:
        started.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        started.kill()
        started.wait()


@contextmanager
def celery_worker(
    environment: Mapping[str, str], log: Path, *options: str, app: str = "tests.integration.celery_tasks"
) -> Iterator[subprocess.Popen[bytes]]:
    """A Celery worker that is ready."""
    arguments = [sys.executable, "-m", "celery", "-A", app, "worker", "--loglevel", "INFO", *options]
    with process([*arguments, "--without-gossip", "--without-mingle"], log, **environment) as started:
        wait_for_line(started, log, b" ready.")
        yield started


@contextmanager
def rq_worker(
    url: str,
    environment: Mapping[str, str],
    log: Path,
    *options: str,
    worker_class: str = "jobmetrics.rq.Worker",
) -> Iterator[subprocess.Popen[bytes]]:
    """An RQ worker that is ready."""
    arguments = [
        sys.executable,
        "-m",
        "rq.cli",
        "worker",
        "--url",
        url,
        "--worker-class",
        worker_class,
        *options,
    ]
    with process(arguments, log, **environment) as started:
        wait_for_line(started, log, b"istening on")
        yield started


def wait_for_line(started: subprocess.Popen[bytes], log: Path, line: bytes) -> None:
    """Wait until a process has logged a line."""
    from tests.support.readings import until

    def said() -> bool:
        ended = started.poll() is not None  # before the log is read, so that its last lines are included
        if line in log.read_bytes():
            return True
        assert not ended, log.read_text(errors="replace")
        return False

    until(said, f"{line!r} in the log")
