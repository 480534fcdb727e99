"""Which queue collectors there are: the installed job systems make them from what the exporter was asked to read."""

from __future__ import annotations

import logging

from jobmetrics.collecting import Collector, CollectorOptions
from jobmetrics.errors import JobmetricsError, SettingsError
from jobmetrics.integration import System, find_systems

logger = logging.getLogger("jobmetrics")


def find(options: CollectorOptions) -> list[Collector]:
    """The collectors of all installed job systems that have something to read.

    The collectors of a system that is not asked for are not even imported. A package that breaks without having been
    asked for is logged and left out.

    Raises:
        SettingsError: The options are wrong.
        JobmetricsError: Something that the options ask for is not installed.
    """
    systems, broken = find_systems()
    for line in broken:
        logger.warning("jobmetrics: %s", line)
    known = {option.keyword for system in systems for option in system.options}
    for keyword in options.given:
        if keyword not in known:
            raise SettingsError(
                f"no installed job system has the option {keyword}; there are {', '.join(sorted(known))}"
            )
    collectors: list[Collector] = []
    for system in systems:
        if system.is_asked_for(options):
            collectors.extend(_made(system, options))
    _refuse_twins(collectors)
    return collectors


def _made(system: System, options: CollectorOptions) -> list[Collector]:
    if system.collectors is None:
        return []
    try:
        return list(system.collectors(options))
    except JobmetricsError:
        raise
    except ImportError as error:
        if system.options:
            remedy = f"; pip install '{system.requirement}'" if system.requirement else ""
            needed = error.name or "a package"
            raise JobmetricsError(f"reading queues of {system.name} needs {needed}{remedy}") from None
        logger.warning("jobmetrics: collectors of %s cannot be imported: %s", system.name, error)
    except Exception as error:
        if system.options:
            raise
        logger.warning("jobmetrics: collectors of %s cannot be made: %s", system.name, type(error).__name__)
    return []


def _refuse_twins(collectors: list[Collector]) -> None:
    seen = set()
    for collector in collectors:
        if (collector.name, collector.broker) in seen:
            raise SettingsError(
                f"two {collector.name} brokers are named {collector.broker!r}; tell them apart with NAME=URL"
            )
        seen.add((collector.name, collector.broker))
