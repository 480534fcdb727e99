"""Environments in which measured processes load compiled modules, as from an installed package.

Compiling fragments a process's memory, so that its forked children copy more pages. Therefore
PYTHONDONTWRITEBYTECODE is removed.
"""

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
    """Environment variables for a process. The first process compiles its modules; later processes load them."""
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    return {**inherited, "PYTHONPYCACHEPREFIX": _kept()}


def beforehand(*modules: str) -> dict[str, str]:
    """The same variables, after compiling these modules and their imports."""
    found = environment()
    subprocess.run([sys.executable, "-c", "import " + ", ".join(modules)], check=True, env=found)
    return found
