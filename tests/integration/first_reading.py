"""Measure the first reading of a broker with many queues, in a separate process."""

from __future__ import annotations

import subprocess
import sys
from typing import NamedTuple

_CODE = """
import sys, time
from importlib import import_module
from pathlib import Path
from jobmetrics.collector_api import CollectorOptions, Target
module, option, url = sys.argv[1:]
(made,) = import_module(module).collectors(CollectorOptions(**{option: (Target("main", url),)}))
def peak():
    return int(Path("/proc/self/status").read_text().partition("VmHWM:")[2].split()[0])
before, start = peak(), time.process_time()
readings = made.collect()
took = time.process_time() - start
grown = (peak() - before) // 1024
depths = [r.value for r in readings if r.family.name == "jobs_queue_depth"]
print(len(readings), len(depths), sum(depths), took, grown)
"""


class FirstReading(NamedTuple):
    """Counts of readings and queues; depth of all queues together; processor seconds; megabytes of memory."""

    readings: float
    queues: float
    depth: float
    seconds: float
    megabytes: float


def first_reading(module: str, option: str, url: str) -> FirstReading:
    """Make a module's collector for the broker in an option of CollectorOptions, and read once."""
    done = subprocess.run(
        [sys.executable, "-c", _CODE, module, option, url], capture_output=True, text=True, check=True
    )
    return FirstReading(*(float(word) for word in done.stdout.split()))
