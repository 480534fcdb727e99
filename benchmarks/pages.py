"""The cost of a copied page on this machine, for the profiles of rows that fork."""

from __future__ import annotations

import functools
import mmap
import os
import resource
import statistics
import time
from collections.abc import Callable

_PAGES = 500
_ROUNDS = 15


def faults() -> int:
    """Minor page faults of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


@functools.cache
def copied_us() -> float:
    """Microseconds that a forked child's first write to a page takes longer, because the kernel copies the page."""
    page = mmap.PAGESIZE
    memory = mmap.mmap(-1, _PAGES * page, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)

    def write() -> float:
        start = time.perf_counter()
        for number in range(_PAGES):
            memory[number * page] = 1
        return (time.perf_counter() - start) / _PAGES * 1e6

    write()
    plain = write()
    return statistics.median(_in_child(write) for _ in range(_ROUNDS)) - plain


def _in_child(measure: Callable[[], float]) -> float:
    reading_end, writing_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writing_end, repr(measure()).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    found = float(os.read(reading_end, 64))
    os.close(reading_end)
    os.close(writing_end)
    return found
