"""Where `check` and `top` read metrics: an exporter's URL, or the registry directory with brokers."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from jobmetrics.cli.options import SYSTEM_OPTIONS, collector_options
from jobmetrics.collector_api import safe_url
from jobmetrics.errors import SettingsError
from jobmetrics.settings import Settings

if TYPE_CHECKING:
    from prometheus_client.metrics_core import Metric

    from jobmetrics.exporter.collectors import CollectorState


@dataclass
class Source:
    """A source of metrics.

    read: returns the current metrics. states: returns the states of the collectors of this process. no_queues: why the
    last reading had no brokers; empty if it had one.
    """

    read: Callable[[], Sequence[Metric]]
    states: Callable[[], list[CollectorState]] = list
    no_queues: str = field(default="", init=False)


def check_url(url: str) -> None:
    """Raise SettingsError unless this is a URL that an exporter may have."""
    from jobmetrics.exporter.client import SCHEMES

    if not url.startswith(SCHEMES):
        raise SettingsError(f"--url={safe_url(url)!r} is not allowed; it takes http://HOST:PORT/metrics")


@contextlib.contextmanager
def opened(
    url: str | None, settings: Settings, brokers: dict[str, Any], *, needs_directory: bool = True
) -> Iterator[Source]:
    """Open a source of metrics.

    Without a URL and without options for brokers, the readings of queues are those of this host's exporter.

    Args:
        url: An exporter's URL; None to read the registry directory.
        settings: The settings.
        brokers: The options of the collectors.
        needs_directory: Whether a missing registry directory is an error.

    Raises:
        SettingsError: An option is not allowed.
        JobmetricsError: The source cannot be read.
    """
    if url is not None:
        yield _remote(url, settings)
        return
    from jobmetrics.exporter import local_processes
    from jobmetrics.exporter.app import reading

    with reading(settings, collector_options(**brokers), needs_directory=needs_directory) as app:

        def read() -> Sequence[Metric]:
            metrics = app.scrape.collect()
            if app.collectors.states():
                return metrics
            found, reason = local_processes.collected(settings)
            flags = " or ".join(option.flag for option in SYSTEM_OPTIONS if option.broker and option.repeatable)
            source.no_queues = f"{reason}; give {flags}, or --url of an exporter" if reason else ""
            return [*metrics, *found]

        source = Source(read, app.collectors.states)
        yield source


def _remote(url: str, settings: Settings) -> Source:
    from jobmetrics.exporter.client import read_metrics
    from jobmetrics.families import COLLECTOR_UP

    check_url(url)
    name = settings.metric_prefix + COLLECTOR_UP.name

    def read() -> Sequence[Metric]:
        metrics = read_metrics(url)
        known = any(metric.name == name for metric in metrics)
        source.no_queues = "" if known else f"the exporter at {safe_url(url)} reads no broker"
        return metrics

    source = Source(read)
    return source
