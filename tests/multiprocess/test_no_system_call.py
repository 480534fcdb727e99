"""A bound record makes no system call with any instrument, as strace shows."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

_RECORD = """
import gc, os, sys
from pathlib import Path
from tests.multiprocess.support import Worker

one = Worker(Path(sys.argv[1]))
hits, level, size = one.hits.at(("a",)), one.levels.at(("a",)), one.sizes.at(("a",))
highest, lowest, latest = one.highest.at(("a",)), one.lowest.at(("a",)), one.latest.at(("a",))

def counter():
    hits.inc()
    hits.inc(2.5)

def gauge():
    level.inc()
    level.dec()
    level.set(3.0)

def histogram():
    size.observe(1.5)
    size.observe(99.0)

def extremes():
    highest.set(5.0)
    lowest.set(5.0)

def most_recent():
    latest.set(5.0)

def labelled():
    one.hits.at(("a",)).inc()
    one.sizes.at(("a",)).observe(1.5)

def dropped():
    hits.inc(-1.0)
    size.observe(float("nan"))

def measured(name):
    for _ in range(1000):
        name()

CASES = (counter, gauge, histogram, extremes, most_recent, labelled, dropped)
for case in CASES:
    measured(case)
gc.collect()
gc.disable()
for case in CASES:
    os.access("/begin-" + case.__name__, os.F_OK)
    measured(case)
    os.access("/end", os.F_OK)
os.access("/begin-nothing", os.F_OK)
os.getppid()
os.access("/end", os.F_OK)
"""

CASES = ["counter", "gauge", "histogram", "extremes", "most_recent", "labelled", "dropped"]
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def calls(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """The system calls of 1,000 records of each kind."""
    strace = shutil.which("strace")
    if strace is None:
        pytest.skip("needs strace")
    folder = tmp_path_factory.mktemp("strace")
    arguments = [strace, "-o", str(folder / "log"), sys.executable, "-c", _RECORD, str(folder / "registry")]
    done = subprocess.run(arguments, cwd=ROOT, capture_output=True, text=True, check=False)
    if "ptrace" in done.stderr:
        pytest.skip(f"strace may not trace here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    found: dict[str, list[str]] = {}
    within: list[str] | None = None
    for line in (folder / "log").read_text(encoding="utf-8").splitlines():
        if begin := re.search(r'"/begin-(\w+)"', line):
            within = found.setdefault(begin[1], [])
        elif '"/end"' in line:
            within = None
        elif within is not None:
            within.append(line)
    return found


def test_strace_shows_the_system_calls(calls: dict[str, list[str]]) -> None:
    assert [line.partition("(")[0] for line in calls["nothing"]] == ["getppid"]


@pytest.mark.parametrize("case", CASES)
def test_a_bound_record_makes_no_system_call(case: str, calls: dict[str, list[str]]) -> None:
    assert calls[case] == []
