"""RQ's options and queue collectors for the commands. RQ is imported when they are used."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from jobmetrics.errors import SettingsError
from jobmetrics.integration import Option, System
from jobmetrics.rq import SYSTEM

if TYPE_CHECKING:
    from jobmetrics.collector_api import Collector, CollectorOptions


def _collectors(options: CollectorOptions) -> Iterable[Collector]:
    try:
        from jobmetrics.rq.queue_collector import collectors
    except ValueError as error:  # RQ 3 refuses a bad RQ_KEY_PREFIX while it is imported
        raise SettingsError(f"rq cannot be imported: {error}") from None
    return collectors(options)


RQ = System(
    SYSTEM,
    package="rq",
    minimum="1.16",
    requirement="jobmetrics[rq]",
    options=(
        Option("rq_url", "[NAME=]URL", "Redis to read RQ queues from. Repeatable.", repeatable=True, broker=True),
        Option(
            "rq_queue",
            "NAME",
            "RQ queue to read. Repeatable. Default: all that RQ lists. "
            "Queues in the registry directory are read as well.",
            repeatable=True,
        ),
    ),
    collectors=_collectors,
)
