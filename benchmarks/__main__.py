"""`make bench`: measure every budget on this machine in one run, and print a table."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from benchmarks import celery, registry, rq, timed
from benchmarks.table import show, write

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the rows that have a budget")
    file = parser.parse_args().json
    measured = [*registry.rows(), *timed.rows(), *celery.rows(), *rq.rows()]
    if file is not None:
        write(measured, file)
    sys.exit(show(measured))
