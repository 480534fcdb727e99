"""The exporter's composition root: from settings and options to something that can be served or dumped."""

from __future__ import annotations

from dataclasses import dataclass

from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import CollectorRegistry

from jobmetrics import __version__
from jobmetrics.collecting import CollectorOptions
from jobmetrics.exporter import discovery
from jobmetrics.exporter.collectors import DEFAULT_REFRESH, BackgroundCollector, BackgroundCollectors
from jobmetrics.exporter.directory import RegistryDirectory
from jobmetrics.exporter.exposition import Exposition
from jobmetrics.exporter.pages import Pages
from jobmetrics.exporter.scrape import Scrape
from jobmetrics.exporter.sparingly import Sparingly
from jobmetrics.settings import Settings


@dataclass(frozen=True)
class Exporter:
    """Everything that is shown, and the application that shows it. Nothing runs before `collectors.start()`."""

    directory: RegistryDirectory
    collectors: BackgroundCollectors
    registry: CollectorRegistry
    pages: Pages

    def text(self) -> bytes:
        """The exposition in Prometheus' text format, now."""
        encode, _ = choose_encoder("")
        return encode(self.registry)

    def close(self) -> None:
        """End the collectors' threads and close all files."""
        self.collectors.close()
        self.directory.close()


def build(settings: Settings, options: CollectorOptions, *, refresh: float = DEFAULT_REFRESH) -> Exporter:
    """Put an exporter together. refresh: seconds between two readings of a broker.

    Raises:
        SettingsError: when the options or settings contradict each other or something asked for is not installed.
    """
    log = Sparingly()
    directory = RegistryDirectory(settings.dir, log)
    exposition = Exposition(settings.namespace, settings.labels, log)
    collectors = BackgroundCollectors(
        [
            BackgroundCollector(collector, refresh=refresh, timeout=options.timeout, log=log)
            for collector in discovery.find(options)
        ]
    )
    registry = CollectorRegistry(auto_describe=False)
    registry.register(Scrape(directory, collectors, exposition, __version__))
    pages = Pages(registry, lambda: directory.read().reason, version=__version__, directory=settings.dir)
    return Exporter(directory, collectors, registry, pages)
