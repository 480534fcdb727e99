from __future__ import annotations

import io

import pytest
from rich.console import Console
from rich.table import Table

from jobmetrics.demo import tables
from jobmetrics.demo.rows import Row

ROWS = [
    Row("celery", "demo.verify_delivery", 12345, 12000, 345, 1234, 2, 0.0025, 0.0975, 1.47),
    Row("rq", "rq_app.jobs.decompress_file", 12345, 12000, 345, 0, 1, None, None, None),
]


def lines(table: Table) -> list[str]:
    written = io.StringIO()
    Console(file=written, width=80).print(table)
    return written.getvalue().splitlines()


def test_the_summary_shows_every_number_in_80_columns() -> None:
    found = lines(tables.summary(ROWS))
    assert not any("…" in line for line in found)
    cells = [line.split("  ") for line in found]
    shown = [[cell.strip() for cell in row if cell.strip()] for row in cells]
    assert ["verify_delivery 12345", "12000", "345", "1234 2.5 ms 97.5 ms", "1.47 s"] in shown
    assert sum(line.count("n/a") for line in found) == 3


def test_the_live_table_shows_depths_beside_the_systems() -> None:
    found = lines(tables.live(ROWS, {"celery": 7.0, "rq": None}, "http://127.0.0.1:1/metrics"))
    assert not any("…" in line for line in found)
    assert [line.split() for line in found if line.startswith(("celery", "rq"))] == [["celery", "7"], ["rq", "n/a"]]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "n/a"), (0.0, "0.0 ms"), (0.0999, "99.9 ms"), (0.1, "100 ms"), (0.9994, "999 ms"), (61.0, "61.00 s")],
)
def test_seconds(value: float | None, shown: str) -> None:
    assert tables.seconds(value) == shown
