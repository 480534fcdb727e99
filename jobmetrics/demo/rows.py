"""A line of the tables: one job type of one system."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from jobmetrics import families
from jobmetrics.demo import ledger
from jobmetrics.demo.compare import JobType
from jobmetrics.demo.quantiles import of_histogram
from jobmetrics.demo.scrape import Exposition


@dataclass(frozen=True)
class Row:
    """Counts, and quantiles in seconds; None where there is no number."""

    system: str
    job_type: str
    sent: int
    succeeded: float
    failed: float
    retried: float
    active: float
    p50: float | None
    p95: float | None
    wait_p95: float | None


def rows(sent: Counter[JobType], exposition: Exposition) -> list[Row]:
    """One row for each job type that was sent or counted, by system and name."""
    kinds = set(sent)
    kinds |= {(one.labels["system"], one.labels["job_type"]) for one in exposition.samples(families.JOBS.name)}
    return [_row(kind, sent[kind], exposition) for kind in sorted(kinds)]


def depths(exposition: Exposition, queues: Mapping[str, str]) -> dict[str, float | None]:
    """Jobs waiting, by system; None where the exporter has no reading."""
    found: dict[str, float | None] = {}
    for system, queue in queues.items():
        labels = {"system": system, "queue_name": queue}
        samples = exposition.samples(families.JOBS_QUEUE_DEPTH.name, labels)
        found[system] = sum(sample.value for sample in samples) if samples else None
    return found


def _row(kind: JobType, sent: int, exposition: Exposition) -> Row:
    system, job_type = kind
    labels = {"system": system, "job_type": job_type}
    statuses = exposition.by(families.JOBS.name, "status", labels)
    return Row(
        system,
        job_type,
        sent,
        succeeded=statuses.get(ledger.SUCCESS, 0.0),
        failed=statuses.get(ledger.FAILURE, 0.0),
        retried=exposition.total(families.JOBS_RETRIES.name, labels),
        active=exposition.total(families.JOBS_ACTIVE.name, labels),
        p50=of_histogram(exposition, families.JOBS_DURATION.name, 0.5, labels),
        p95=of_histogram(exposition, families.JOBS_DURATION.name, 0.95, labels),
        wait_p95=of_histogram(exposition, families.JOBS_QUEUE_WAIT.name, 0.95, labels),
    )
