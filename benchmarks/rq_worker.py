"""One side of the RQ benchmark in a separate process: `python -m benchmarks.rq_worker CLASS URL [MODULE]`.

For each line on standard input, it works until the queue is empty and prints one line of JSON: processor seconds of
this process and its work-horses, wall-clock seconds, page faults of this process, page faults of its work-horses.
MODULE is imported first, so that work-horses inherit it.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from importlib import import_module

from redis import Redis
from rq import Queue
from rq.utils import import_attribute

QUEUE = "bench"


def _used() -> tuple[float, float, int, int]:
    own, ended = resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = own.ru_utime + own.ru_stime + ended.ru_utime + ended.ru_stime
    return cpu, time.perf_counter(), own.ru_minflt, ended.ru_minflt


def main() -> None:
    """Work on command."""
    worker_class, url, *modules = sys.argv[1:]
    for module in modules:
        import_module(module)
    kind = import_attribute(worker_class)
    connection = Redis.from_url(url)
    for _ in sys.stdin:
        worker = kind([Queue(QUEUE, connection=connection)], connection=connection)
        before = _used()
        worker.work(burst=True, logging_level="ERROR")
        print(json.dumps([now - then for now, then in zip(_used(), before, strict=True)]), flush=True)


if __name__ == "__main__":
    main()
