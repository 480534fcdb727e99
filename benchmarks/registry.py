"""The rows of the registry, alone: `python -m benchmarks.registry`."""

from __future__ import annotations

import sys

from benchmarks import footprint, forking, operations, scrape
from benchmarks.measuring import Row
from benchmarks.table import show


def rows() -> list[Row]:
    """Measure the rows."""
    return [*operations.rows(), *forking.rows(), *footprint.rows(), *scrape.rows()]


if __name__ == "__main__":
    sys.exit(show(rows()))
