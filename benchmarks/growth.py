"""How a scrape grows: time and memory at 8 to 1,024 slots, 200 and 2,000 series, beside copying the same bytes.

Not part of the budget table; run it by `python -m benchmarks.growth`. It writes the files that workers would leave,
with the package's layout. With a thousand living workers, the figures would depend on the machine instead.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.table import Table

SLOTS = (8, 64, 256, 1024)
SERIES = (200, 2000)
BUCKETS = tuple(float(bound) for bound in range(1, 15))
ROUNDS = 7


def fill(path: Path, slots: int, series: int) -> None:
    """Make a directory of histograms with 15 buckets each, with every cell of every slot in use."""
    from jobmetrics.families import HISTOGRAM, JOB_LABELS, Family
    from jobmetrics.registry import layout
    from jobmetrics.registry.directory import Directory, slot_name
    from jobmetrics.registry.index import IndexFile
    from jobmetrics.registry.slots import SlotPlan

    directory = Directory(str(path))
    file = IndexFile(directory, series * 3)
    index = file.load()
    family = Family("bench_seconds", HISTOGRAM, "A benchmark.", JOB_LABELS, buckets=BUCKETS)
    for number in range(series):
        file.place(index, family, ("celery", f"app.tasks.job_{number}", "default"), 1.0)
    plan = SlotPlan(directory, index.identity, 1)
    size = plan.size(index.next_cell)
    cells = memoryview(bytearray(size - plan.cells_offset)).cast("d")
    for cell in range(index.next_cell):
        cells[cell] = float(cell % 7)
    for number in range(slots):
        header = layout.SlotHeader(plan.entries, index.identity, os.urandom(8)).pack()
        Path(path, slot_name(number)).write_bytes(header.ljust(plan.cells_offset, b"\0") + cells.tobytes())


def measure(path: str) -> None:
    """Print the medians of a warm reading and of copying the same bytes, in milliseconds, and the memory in MiB.

    It runs in a separate process.
    """
    import resource

    from jobmetrics.registry.read.snapshot import SnapshotReader

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    reader = SnapshotReader(path)
    reader.read()
    files = [os.open(entry.path, os.O_RDONLY) for entry in os.scandir(path)]
    buffer = bytearray(max(os.fstat(fd).st_size for fd in files))
    reading, copying = [], []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        reader.read()
        reading.append(time.perf_counter() - start)
        start = time.perf_counter()
        for fd in files:
            os.preadv(fd, [buffer], 0)
        copying.append(time.perf_counter() - start)
    used = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    print(statistics.median(reading) * 1000, statistics.median(copying) * 1000, used)


def main() -> None:
    """Fill, measure and print."""
    table = Table(title="One warm reading of the directory (medians), beside copying the same bytes")
    for heading in ("slots", "histograms", "read ms", "copy ms", "read / copy", "memory MiB"):
        table.add_column(heading, justify="right")
    base = "/dev/shm" if Path("/dev/shm").is_dir() else None
    for series in SERIES:
        for slots in SLOTS:
            with tempfile.TemporaryDirectory(dir=base) as root:
                path = Path(root, "registry")
                fill(path, slots, series)
                command = [sys.executable, "-m", "benchmarks.growth", str(path)]
                answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
            read, copy, used = map(float, answer)
            table.add_row(str(slots), str(series), f"{read:.1f}", f"{copy:.1f}", f"{read / copy:.1f}", f"{used:.0f}")
    Console(width=100).print(table)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        measure(sys.argv[1])
    else:
        main()
