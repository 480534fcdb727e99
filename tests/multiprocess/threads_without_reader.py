"""The program that `test_threads` runs in other interpreters, with only the write side, since they may lack numpy."""

from __future__ import annotations

import sys
import threading

from jobmetrics import settings
from jobmetrics.families import COUNTER, HISTOGRAM
from jobmetrics.instruments import BoundCounter, BoundHistogram, Labelled, define
from jobmetrics.registry.write.writer import Writer

THREADS = 4


def main(path: str, times: int) -> None:
    """Count from several threads, `times` times in each."""
    sys.setswitchinterval(1e-6)
    writer = Writer(settings.Settings(dir=path, propagate_errors=True))
    counter = Labelled(BoundCounter, define(COUNTER, "threads_counted", "Counted.", ()), writer).at(())
    sized = define(HISTOGRAM, "threads_sized", "Sized.", (), buckets=(1.0, 2.0))
    histogram = Labelled(BoundHistogram, sized, writer).at(())

    def record() -> None:
        for _ in range(times):
            counter.inc()
            histogram.observe(1.5)

    threads = [threading.Thread(target=record) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
