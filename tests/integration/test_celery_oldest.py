"""The truth table of the prefork pool on the oldest Celery that is supported, in a small environment of its own.

The versions between, and the other pools on all of them, are nox's: see noxfile.py.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests import servers
from tests.integration.processes import ROOT

OLDEST = "5.3"
NEEDED = ("hypothesis", "numpy", "prometheus-client", "psutil", "pytest>=8.2", "pytest-timeout", "redis>=4.5.2")


def _environment() -> Path:
    """The Python of an environment with the oldest Celery; made once, and gone with .venv."""
    directory = ROOT / ".venv" / f"celery-{OLDEST}"
    python, stamp = directory / "bin" / "python", directory / "stamp"
    wanted = f"{sys.version} {NEEDED}"
    if not stamp.exists() or stamp.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(directory)], check=True)
        made = subprocess.run(
            [
                *(str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check"),
                *(f"celery=={OLDEST}.*", *NEEDED, "-e", str(ROOT)),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode:
            servers.unavailable(f"Celery {OLDEST} cannot be installed: {made.stderr[-500:]}")
        stamp.write_text(wanted)
    return python


def test_the_truth_table_holds_on_the_oldest_celery() -> None:
    command = [str(_environment()), "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    ran = subprocess.run(
        # Old releases warn of their own use of what newer libraries deprecate.
        [*command, "-W", "ignore::DeprecationWarning", "tests/integration/test_celery_prefork.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-6000:]
