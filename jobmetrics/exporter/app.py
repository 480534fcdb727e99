"""The exporter's composition root: from settings and options to something that can be served or dumped."""

from __future__ import annotations

from dataclasses import dataclass

from jobmetrics import __version__
from jobmetrics.collector_api import CollectorOptions
from jobmetrics.exporter import collectors as collecting
from jobmetrics.exporter.collectors import DEFAULT_REFRESH, BackgroundCollector, BackgroundCollectors
from jobmetrics.exporter.metrics_page import Exposition, MetricsPage, Scrape
from jobmetrics.exporter.registry_reader import RegistryDirectory
from jobmetrics.log_throttle import ThrottledLog
from jobmetrics.registry.directory import Directory
from jobmetrics.settings import Settings


@dataclass(frozen=True)
class Exporter:
    """Everything that is shown, and the pages that show it. Nothing runs before `collectors.start()`."""

    directory: RegistryDirectory
    collectors: BackgroundCollectors
    scrape: Scrape
    metrics: MetricsPage

    def text(self) -> bytes:
        """The exposition in Prometheus' text format, now."""
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
    """Put an exporter together.

    refresh: seconds between two readings of a broker. hide_after: seconds after which series that have not
    changed are not shown, None for never.

    Raises:
        SettingsError: when the options or settings contradict each other or something asked for is not installed.
    """
    log = ThrottledLog()
    directory = RegistryDirectory(Directory(settings.dir, settings.dir_group, settings.dir_owner), log, hide_after)
    exposition = Exposition(settings.namespace, settings.labels, log)
    collectors = BackgroundCollectors(
        [
            BackgroundCollector(collector, refresh=refresh, timeout=options.timeout, log=log)
            for collector in collecting.find(options)
        ]
    )
    scrape = Scrape(directory, collectors, exposition, __version__)
    return Exporter(directory, collectors, scrape, MetricsPage(scrape.collect))
