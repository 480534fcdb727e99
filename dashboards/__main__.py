"""Write the dashboards, or with --check exit 1 when what is written is out of date."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from dashboards.shipped import FOLDER, files


def main(arguments: Sequence[str] | None = None, folder: Path = FOLDER) -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m dashboards", description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing")
    check = parser.parse_args(arguments).check
    wanted = files()
    found = {path.name: path.read_text(encoding="utf-8") for path in folder.glob("*.json")}
    stale = [name for name, text in wanted.items() if found.get(name) != text]
    stray = sorted(set(found) - set(wanted))
    for name in (*stale, *stray):
        sys.stdout.write(f"{name}: {'out of date' if name in wanted else 'no such dashboard'}\n")
    if check:
        return 1 if stale or stray else 0
    folder.mkdir(exist_ok=True)
    for name in stale:
        (folder / name).write_text(wanted[name], encoding="utf-8")
    for name in stray:
        (folder / name).unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
