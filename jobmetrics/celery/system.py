"""Celery's options, queue collectors and checks for the commands. Celery is imported when they are used."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

from jobmetrics.celery import SYSTEM
from jobmetrics.families import JOBS_DURATION, JOBS_QUEUE_WAIT, Family
from jobmetrics.integration import NOTE, Finding, Option, Recorded, System

if TYPE_CHECKING:
    from jobmetrics.collector_api import Collector, CollectorOptions

_SHOWN = 3  # job types named in one finding


def _collectors(options: CollectorOptions) -> Iterable[Collector]:
    from jobmetrics.celery.queue_collector import collectors

    return collectors(options)


def _checks(recorded: Recorded) -> Iterator[Finding]:
    """Check that producers add a timestamp to their tasks. Without it the wait is unknown."""
    ran, waited = _by_job_type(recorded, JOBS_DURATION), _by_job_type(recorded, JOBS_QUEUE_WAIT)
    unstamped = sorted(job_type for job_type, count in ran.items() if count and not waited[job_type])
    if unstamped:
        shown = ", ".join(unstamped[:_SHOWN]) + (", ..." if len(unstamped) > _SHOWN else "")
        yield Finding(
            NOTE, f"the producers of {len(unstamped)} Celery job types are not instrumented: waits unknown for {shown}",
            "call jobmetrics.celery.instrument(app) in the processes that publish them",
        )  # fmt: skip


def _by_job_type(recorded: Recorded, family: Family) -> Counter[str]:
    counts: Counter[str] = Counter()
    for (system, job_type, _), count in recorded(family).items():
        if system == SYSTEM:
            counts[job_type] += int(count)
    return counts


CELERY = System(
    SYSTEM,
    package="celery",
    minimum="5.3",
    requirement="jobmetrics[celery]",
    options=(
        Option(
            "celery_broker", "[NAME=]URL",
            "Broker to read queues from; NAME is the label 'broker'. Repeatable. "
            "Put a URL with a password in the environment variable: the process list shows command lines. "
            "Several URLs there are separated by spaces.",
            repeatable=True, broker=True,
        ),
        Option(
            "celery_queue", "NAME",
            "Celery queue to read. Repeatable. Default: those of the application, else 'celery'. "
            "Queues in the registry directory and kombu's bindings in Redis are read as well.",
            repeatable=True,
        ),
        Option(
            "celery_app", "MOD:ATTR", "Celery application to take the broker, transport options and queues from."
        ),
    ),
    collectors=_collectors,
    checks=_checks,
)  # fmt: skip
