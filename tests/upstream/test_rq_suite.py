"""RQ's own tests with jobmetrics' worker classes on the installed RQ; nox runs other versions."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import servers

DRIVER = Path(__file__).with_name("rq_suite.py")


@pytest.mark.full
@pytest.mark.first
@pytest.mark.timeout(1800)  # runs the suite twice
def test_the_tests_of_rq_have_the_same_results_with_and_without_jobmetrics() -> None:
    servers.program("redis-server")
    ran = subprocess.run([sys.executable, str(DRIVER)], capture_output=True, text=True, check=False)
    if ran.returncode == 2:
        servers.unavailable(ran.stdout[-500:])
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]
