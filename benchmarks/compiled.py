"""Measured processes load compiled modules, as an installed package does, whatever this shell sets for writing
them: compiling leaves holes in a process's memory, which a forked child pays for with copied pages."""

from __future__ import annotations

import atexit
import functools
import os
import subprocess
import sys
import tempfile


@functools.cache
def _kept() -> str:
    kept = tempfile.TemporaryDirectory(prefix="jobmetrics-bench-")
    atexit.register(kept.cleanup)
    return kept.name


def environment() -> dict[str, str]:
    """An environment for a process: its modules are compiled at its first run and kept for the next."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**inherited, "PYTHONPYCACHEPREFIX": _kept()}


def beforehand(*modules: str) -> dict[str, str]:
    """The same, with these modules and all that they import compiled now."""
    found = environment()
    subprocess.run([sys.executable, "-c", "import " + ", ".join(modules)], check=True, env=found)
    return found
