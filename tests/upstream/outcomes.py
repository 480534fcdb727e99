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

RERUNS = 3  # of a test with a worse result: some tests depend on time
REDIS_SECONDS = 60.0

Results = dict[str, str]
"""The outcome of each test. Several outcomes of one test, such as its subtests', are joined by "+"."""

_FAILED = {"failure", "error"}


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
    """The results in a JUnit report, without the entries for files and for pytest itself, which belong to no test."""
    found: dict[str, list[str]] = {}
    for case in ET.parse(report).iter("testcase") if report.exists() else ():
        if case.get("classname") not in {None, "", "pytest"}:
            outcome = next((child.tag for child in case if child.tag in {"failure", "error", "skipped"}), "passed")
            found.setdefault(f"{case.get('classname')}::{case.get('name')}", []).append(outcome)
    return {name: "+".join(sorted(set(outcomes))) for name, outcomes in found.items()}


def compare(
    distribution: str,
    run: Callable[[], tuple[Results, Results]],
    run_again: Callable[[set[str]], tuple[Results, Results]],
    registry: Path,
) -> int:
    """Compare the suite's results bare and with jobmetrics, and print each difference.

    Args:
        distribution: the name of the job system's distribution.
        run: runs the tests bare and with jobmetrics.
        run_again: does the same for tests with these names.
        registry: the directory in which jobmetrics records.

    Returns:
        The exit code: 1 if a result is worse in each run, if no test passed, or if nothing was recorded.
    """
    bare, ours = run()
    print(
        f"{distribution} {version(distribution)}: bare {_summary(bare)}; with jobmetrics {_summary(ours)}", flush=True
    )
    if "passed" not in bare.values() or not _recorded(registry):
        print("no test passed, or nothing was recorded")
        return 1
    return 1 if always_worse(bare, ours, run_again) else 0


def always_worse(bare: Results, ours: Results, run_again: Callable[[set[str]], tuple[Results, Results]]) -> set[str]:
    """The tests with a worse result with jobmetrics, there and in each of RERUNS more runs. Print all differences."""
    differing = sorted(name for name in bare.keys() | ours.keys() if bare.get(name) != ours.get(name))
    seen: dict[str, list[str]] = {name: [] for name in differing}
    worse = set(differing)
    for run in range(1 + RERUNS):
        for name in worse:
            seen[name].append(f"bare {bare.get(name, 'absent')}, with jobmetrics {ours.get(name, 'absent')}")
        worse = {name for name in worse if _is_worse(bare.get(name, ""), ours.get(name, ""))}
        if not worse or run == RERUNS:
            break
        print(f"again, for a worse result: {', '.join(sorted(worse))}", flush=True)
        bare, ours = run_again(worse)
    for name, results in seen.items():
        print(f"{'always worse' if name in worse else 'differs'}: {name}: {'; again: '.join(results)}", flush=True)
    return worse


def _is_worse(bare: str, ours: str) -> bool:
    """Whether a test did better bare. One that is absent with jobmetrics did: it was not run, or not collected."""
    before, after = set(bare.split("+")), set(ours.split("+"))
    fails = bool(after & _FAILED) and not before & _FAILED
    return not ours or fails or "passed" in before - after


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
