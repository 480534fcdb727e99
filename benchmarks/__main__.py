"""`make bench`: the budget table of the design with what was measured on this machine, in one run."""

from __future__ import annotations

import sys

from benchmarks import celery, registry, rq, timed
from benchmarks.table import show

if __name__ == "__main__":
    sys.exit(show([*registry.rows(), *timed.rows(), *celery.rows(), *rq.rows()]))
