"""The derived figures of docs/scaling.md match the figures that they follow from."""

from __future__ import annotations

import re

from jobmetrics import recorder
from jobmetrics.collector_api import CollectorOptions
from jobmetrics.events import FAILURE, RETRY, SUCCESS, Ended, Job, Started
from jobmetrics.exporter.app import build
from jobmetrics.families import JOBS_DURATION, JOBS_QUEUE_WAIT
from jobmetrics.settings import Settings
from jobmetrics.testing import temporary_registry
from tests.unit.documents import DOCS

PAGE = (DOCS / "scaling.md").read_text()
MEASURED = {
    int(cells[0]): [float(cell) for cell in cells[1:]]
    for line in (DOCS / "scaling-measured.md").read_text().replace(",", "").splitlines()
    if re.match(r"\| \d", line)
    for cells in [line.strip("| ").split(" | ")]
}


def samples(job_types: int) -> int:
    """The samples of a host that has recorded the jobs of `benchmarks.host`."""
    with temporary_registry() as directory:
        record = recorder.default()
        for number in range(job_types):
            for status in (SUCCESS, FAILURE, RETRY):
                job = Job("celery", f"job_{number}", "celery")
                execution = record.started(Started(job, f"{number}-{status}", 0.0))
                assert execution is not None
                record.ended(execution, Ended(status))
        app = build(Settings(dir=str(directory)), CollectorOptions())
        try:
            return sum(not line.startswith(b"#") for line in app.text().splitlines())
        finally:
            app.close()


def test_samples_per_job_type_match_the_measurement() -> None:
    each = samples(3) - samples(2)
    assert {MEASURED[50][0] - MEASURED[10][0], (MEASURED[200][0] - MEASURED[50][0]) / 150 * 40} == {each * 40}
    assert f"has about {each} samples" in PAGE
    buckets = sum(len(family.buckets) + 1 for family in (JOBS_DURATION, JOBS_QUEUE_WAIT))
    assert f"{buckets} of them are the buckets" in PAGE


def row(name: str) -> list[str]:
    (found,) = [line for line in PAGE.splitlines() if line.startswith(f"| {name} |")]
    return [cell.strip() for cell in found.strip("|").split("|")]


def test_the_estimate_is_computed() -> None:
    found = re.search(r"10,000 worker processes, (\d+) per host, need (\d+) hosts\. With (\d+) job types", PAGE)
    assert found is not None
    a_host, hosts, job_types = map(int, found.groups())
    assert a_host * hosts == 10_000
    each, _, zipped = MEASURED[job_types]
    series = hosts * each
    assert row("series")[1:] == [f"{hosts} hosts x {each:,.0f} samples", f"{series / 1e6:.1f} million"]
    assert row("samples per second")[2] == f"{round(series / 15, -3):,.0f}"
    assert row("network, gzipped")[1:] == [
        f"{hosts} x {zipped:.0f} kB / 15 s",
        f"{hosts * zipped / 15 / 1000:.1f} MB/s",
    ]
    seconds = 15 * 24 * 3600
    assert f"{seconds:,} s" in row("disk, 15 days")[1]
    low, high = (round(series / 15 * seconds * size / 1e9, -1) for size in (1, 2))
    assert row("disk, 15 days")[2] == f"{low:.0f} to {high:.0f} GB"
    assert row("memory of Prometheus")[2].startswith(f"{series * 3e-6:.1f} to {series * 6e-6:.0f} GB")
