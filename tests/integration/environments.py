"""The tests of a job system on a release of it that is not the installed one, in a small environment of its own.

The releases between the oldest and the newest are nox's: see noxfile.py.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests import servers
from tests.integration.processes import ROOT

# What the tests themselves need; numpy and prometheus-client read the directory.
_TOOLS = ("hypothesis", "numpy", "prometheus-client", "psutil", "pytest>=8.2", "pytest-timeout")


def assert_tests_pass_on(system: str, version: str, needed: tuple[str, ...], *tests: str) -> None:
    """Run test files with a release of a job system, such as celery 5.3, and what else they need."""
    command = [str(_environment(system, version, needed)), "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    ran = subprocess.run(
        # Old releases warn of their own use of what newer libraries, or they themselves, deprecate.
        [*command, "-W", "ignore::DeprecationWarning", *tests],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout[-6000:] + ran.stderr[-2000:]


def _environment(system: str, version: str, needed: tuple[str, ...]) -> Path:
    """The Python of an environment with this release; made once, and gone with .venv."""
    directory = ROOT / ".venv" / f"{system}-{version}"
    python, stamp = directory / "bin" / "python", directory / "stamp"
    packages = [f"{system}=={version}.*", *_TOOLS, *needed]
    wanted = f"{sys.version} {packages}"
    if not stamp.exists() or stamp.read_text() != wanted:
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(directory)], check=True)
        made = subprocess.run(
            [
                *(str(python), "-m", "pip", "install", "-qq", "--disable-pip-version-check"),
                *packages,
                *("-e", str(ROOT)),
            ],
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode:
            servers.unavailable(f"{system} {version} cannot be installed: {made.stderr[-500:]}")
        stamp.write_text(wanted)
    return python
