"""The commands in a README: its indented lines that begin with a program."""

from __future__ import annotations

import re
from pathlib import Path


def commands(path: Path, *programs: str) -> list[str]:
    """Every command that begins with one of these programs, unchanged."""
    lines = re.findall(r"^    (\S.*)$", path.read_text(), re.MULTILINE)
    return [line for line in lines if line.split()[0] in programs]
