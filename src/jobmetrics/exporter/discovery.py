"""Which queue collectors there are: found by entry point, made from what the exporter was asked to read."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from importlib.metadata import EntryPoint, entry_points

from jobmetrics.collecting import ENTRY_POINT_GROUP, Collector, CollectorOptions
from jobmetrics.errors import JobmetricsError, SettingsError

logger = logging.getLogger("jobmetrics")

SYSTEMS = ("celery", "rq")  # those with options of their own on the command line


def find(options: CollectorOptions) -> list[Collector]:
    """The collectors of all installed packages that have something to read.

    What nobody asks for is not even imported. A third party's factory that breaks is logged and left out.

    Raises:
        SettingsError: when something asked for is not installed, or the options are wrong.
    """
    entries = {entry.name: entry for entry in entry_points(group=ENTRY_POINT_GROUP)}
    for system in SYSTEMS:
        if options.ask_for(system) and system not in entries:
            raise SettingsError(f"no collector for {system} is installed; pip install 'jobmetrics[{system}]'")
    collectors: list[Collector] = []
    for name in sorted(entries):
        if options.ask_for(name):
            collectors.extend(_made(entries[name], options))
    _refuse_twins(collectors)
    return collectors


def _made(entry: EntryPoint, options: CollectorOptions) -> list[Collector]:
    try:
        return list(_loaded(entry)(options))
    except JobmetricsError:
        raise
    except ImportError as error:
        if entry.name in SYSTEMS:
            missing = error.name or "a package"
            raise SettingsError(
                f"reading queues of {entry.name} needs {missing}; pip install 'jobmetrics[{entry.name}]'"
            ) from None
        logger.warning("jobmetrics: collector %s cannot be imported: %s", entry.name, error)
    except Exception as error:
        if entry.name in SYSTEMS:
            raise
        logger.warning("jobmetrics: collector %s cannot be made: %s", entry.name, type(error).__name__)
    return []


def _loaded(entry: EntryPoint) -> Callable[[CollectorOptions], Iterable[Collector]]:
    try:
        loaded: Callable[[CollectorOptions], Iterable[Collector]] = entry.load()
    except ValueError as error:  # RQ 3 refuses a bad RQ_KEY_PREFIX while it is imported
        if entry.name in SYSTEMS:
            raise SettingsError(f"{entry.name} cannot be imported: {error}") from None
        raise
    return loaded


def _refuse_twins(collectors: list[Collector]) -> None:
    seen = set()
    for collector in collectors:
        if (collector.name, collector.broker) in seen:
            raise SettingsError(
                f"two {collector.name} brokers are named {collector.broker!r}; tell them apart with NAME=URL"
            )
        seen.add((collector.name, collector.broker))
