"""Shared by the drivers of the job systems' test suites: the sources, a Redis, and the comparison of two runs."""

from __future__ import annotations

import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

ATTEMPTS = 3  # some tests depend on time: a difference counts only if it appears in each run
REDIS_SECONDS = 60.0

Results = dict[str, str]
"""The outcome of each test."""


@contextmanager
def source_of(distribution: str) -> Iterator[Path]:
    """The unpacked source distribution of an installed version, by pip. Raises CalledProcessError without one."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
    with tempfile.TemporaryDirectory() as made:
        pinned = f"{distribution}=={version(distribution)}"
        subprocess.run([*command, "--no-binary", ":all:", "--dest", made, pinned], check=True)
        (archive,) = Path(made).glob(f"{distribution}-*.tar.gz")
        with tarfile.open(archive) as file:
            file.extractall(made, filter="data")
        (unpacked,) = (path for path in Path(made).glob(f"{distribution}-*") if path.is_dir())
        yield unpacked


def read_report(report: Path) -> Results:
    """The results in a JUnit report. Tests of one id, such as subtests, have all their outcomes in one."""
    found: dict[str, list[str]] = {}
    for case in ET.parse(report).iter("testcase") if report.exists() else ():
        outcome = next((child.tag for child in case if child.tag in {"failure", "error", "skipped"}), "passed")
        found.setdefault(f"{case.get('classname')}::{case.get('name')}", []).append(outcome)
    return {name: "+".join(sorted(set(outcomes))) for name, outcomes in found.items()}


def compare(
    distribution: str,
    run: Callable[[], tuple[Results, Results]],
    run_again: Callable[[set[str]], tuple[Results, Results]],
    registry: Path,
) -> int:
    """Compare the suite's results bare and with jobmetrics, and print the differences of each run.

    Args:
        distribution: the name of the job system's distribution.
        run: runs the tests bare and with jobmetrics.
        run_again: does the same for tests with these names.
        registry: the directory in which jobmetrics records.

    Returns:
        The exit code: 1 if a result differs, if no test passed, or if nothing was recorded.
    """
    bare, ours = run()
    print(
        f"{distribution} {version(distribution)}: bare {_summary(bare)}; with jobmetrics {_summary(ours)}", flush=True
    )
    if "passed" not in bare.values() or not _recorded(registry):
        print("no test passed, or nothing was recorded")
        return 1
    differing = _differing(bare, ours)
    for _ in range(ATTEMPTS - 1):
        if not differing:
            break
        print(f"again, for what differed: {', '.join(sorted(differing))}", flush=True)
        bare, ours = run_again(differing)
        differing &= _differing(bare, ours)
    for name in sorted(differing):
        print(f"differs: {name}: bare {bare.get(name, 'absent')}, with jobmetrics {ours.get(name, 'absent')}")
    return 1 if differing else 0


def _differing(bare: Results, ours: Results) -> set[str]:
    return {name for name in bare.keys() | ours.keys() if bare.get(name) != ours.get(name)}


def _summary(results: Results) -> str:
    outcomes = list(results.values())
    return ", ".join(f"{outcomes.count(outcome)} {outcome}" for outcome in sorted(set(outcomes))) or "nothing"


def _recorded(registry: Path) -> bool:
    """Whether jobmetrics recorded: jobs were counted."""
    command = [sys.executable, "-m", "jobmetrics", "dump", "--dir", str(registry)]
    shown = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return any(line.startswith(("jobs_total{", "jobs_published_total{")) for line in shown.splitlines())


@contextmanager
def redis_on(port: int) -> Iterator[None]:
    """A Redis on this port while the context is active."""
    with tempfile.TemporaryDirectory() as made:
        command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", made]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + REDIS_SECONDS
            while not is_answering(port):
                if server.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit("redis-server did not start")
                time.sleep(0.05)
            yield
        finally:
            server.terminate()
            server.wait()


def is_answering(port: int) -> bool:
    """Whether a process listens on this port of the loopback."""
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0
