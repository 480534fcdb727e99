"""The exporter's composition root: build an exporter from settings and options."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from jobmetrics import __version__
from jobmetrics.collector_api import CollectorOptions
from jobmetrics.exporter.collectors import DEFAULT_REFRESH, BackgroundCollector, BackgroundCollectors, find
from jobmetrics.exporter.metrics_page import Exposition, MetricsPage, Scrape
from jobmetrics.exporter.registry_reader import RegistryDirectory
from jobmetrics.log_throttle import ThrottledLog
from jobmetrics.registry import Directory
from jobmetrics.settings import Settings


@dataclass(frozen=True)
class Exporter:
    """The parts of an exporter. No broker is read before `collectors.start()`."""

    directory: RegistryDirectory
    collectors: BackgroundCollectors
    scrape: Scrape
    metrics: MetricsPage

    def text(self) -> bytes:
        """Return the current metrics in Prometheus' text format."""
        return self.metrics.text()

    def close(self) -> None:
        """End the collectors' threads and close all files."""
        self.collectors.close()
        self.directory.close()


def build(
    settings: Settings,
    options: CollectorOptions,
    *,
    refresh: float = DEFAULT_REFRESH,
    hide_after: float | None = None,
) -> Exporter:
    """Build an exporter.

    Args:
        settings: The settings.
        options: The options of the collectors.
        refresh: Seconds between two readings of a broker.
        hide_after: Seconds without a change after which a series is hidden; None to hide none.

    Raises:
        SettingsError: An option or setting is wrong, or two contradict each other.
        JobmetricsError: A package that the options need is not installed.
    """
    log = ThrottledLog()
    directory = RegistryDirectory(Directory(settings.dir, settings.dir_group, settings.dir_owner), log, hide_after)
    exposition = Exposition(settings.namespace, settings.labels, log)
    collectors = BackgroundCollectors(
        [
            BackgroundCollector(collector, refresh=refresh, timeout=options.timeout, log=log)
            for collector in find(options.with_recorded(directory.queues))
        ]
    )
    scrape = Scrape(directory, collectors, exposition, __version__)
    return Exporter(directory, collectors, scrape, MetricsPage(scrape.collect))


@contextmanager
def reading(settings: Settings, options: CollectorOptions, *, needs_directory: bool = True) -> Iterator[Exporter]:
    """Build an exporter, wait until it has read its brokers, and close it at the end of the block.

    Args:
        settings: The settings.
        options: The options of the collectors.
        needs_directory: Whether a missing registry directory is an error.

    Raises:
        SettingsError: as `build`.
        RegistryError: for a registry directory that is missing or must not be read, if one is needed.
    """
    app = build(settings, options)
    if needs_directory:
        app.directory.require(missing_ok=False)
    app.collectors.start()
    try:
        app.collectors.wait(options.timeout)
        yield app
    finally:
        app.close()
