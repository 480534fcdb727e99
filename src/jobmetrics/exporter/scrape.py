"""One scrape: the directory, the brokers and the exporter itself as metrics."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client.metrics_core import Metric

from jobmetrics import families
from jobmetrics.exporter.collectors import BackgroundCollectors, CollectorState
from jobmetrics.exporter.directory import DirectoryReading, RegistryDirectory
from jobmetrics.exporter.exposition import Exposition
from jobmetrics.exporter.memory import WorkerMemory
from jobmetrics.families import Family
from jobmetrics.registry.snapshot import Sample, Snapshot

Group = tuple[Family, Sequence[Sample]]


class Scrape:
    """Puts together what a scrape shows. version: of this jobmetrics."""

    def __init__(
        self, directory: RegistryDirectory, collectors: BackgroundCollectors, exposition: Exposition, version: str
    ) -> None:
        self._directory = directory
        self._collectors = collectors
        self._exposition = exposition
        self._version = version
        self._memory = WorkerMemory()

    def collect(self) -> list[Metric]:
        """Everything there is to show now."""
        reading = self._directory.read()
        groups: list[Group] = [*_own(reading, self._version), *_collected(self._collectors.states())]
        if reading.snapshot is not None:
            groups += _recorded(reading.snapshot, self._memory)
        return self._exposition.metrics(groups, left_out=families.INVALID_FAMILIES)


def _recorded(snapshot: Snapshot, memory: WorkerMemory) -> list[Group]:
    """What workers and producers recorded. The oldest start is absent where nothing runs."""
    oldest = [Sample(active.values, active.oldest) for active in snapshot.active if active.oldest is not None]
    resident = [Sample((system,), size) for system, size in sorted(memory.by_system(snapshot.owners).items())]
    return [
        *snapshot.families,
        (families.JOBS_ACTIVE, [Sample(active.values, float(active.count)) for active in snapshot.active]),
        (families.JOBS_ACTIVE_OLDEST, oldest),
        (families.WORKER_RESIDENT_MEMORY, resident),
    ]


def _collected(states: Sequence[CollectorState]) -> list[Group]:
    """What the brokers said, and whether they did. A reading that failed is absent."""
    if not states:
        return []
    found: dict[str, tuple[Family, dict[tuple[str, ...], Sample]]] = {}
    up, duration, last_success = [], [], []
    for state in states:
        label = (state.name, state.broker)
        if state.up is not None:
            up.append(Sample(label, float(state.up)))
        if state.duration is not None:
            duration.append(Sample(label, state.duration))
        if state.last_success is not None:
            last_success.append(Sample(label, state.last_success))
        for reading in state.readings:
            family, samples = found.setdefault(reading.family.name, (reading.family, {}))
            if family.labels == reading.family.labels:  # else two collectors disagree: the first one counts
                samples.setdefault(reading.values, Sample(reading.values, float(reading.value)))
    found.setdefault(families.JOBS_QUEUE_DEPTH.name, (families.JOBS_QUEUE_DEPTH, {}))
    return [
        *((family, list(samples.values())) for family, samples in found.values()),
        (families.COLLECTOR_UP, up),
        (families.COLLECTOR_DURATION, duration),
        (families.COLLECTOR_LAST_SUCCESS, last_success),
    ]


def _own(reading: DirectoryReading, version: str) -> list[Group]:
    """The exporter itself. What only the directory knows is absent while it cannot be read."""
    snapshot = reading.snapshot
    groups: list[Group] = [
        (families.BUILD_INFO, [Sample((version,), 1.0)]),
        (families.DIRECTORY_UP, [Sample((), float(snapshot is not None))]),
        (families.SCRAPE_DURATION, [Sample((), reading.seconds)]),
    ]
    if snapshot is None:
        return groups
    slots = {"live": snapshot.live, "free": snapshot.free, "damaged": snapshot.damaged}
    groups += [
        (families.SLOTS, [Sample((state,), float(count)) for state, count in slots.items()]),
        (families.SERIES, [Sample((), float(snapshot.series))]),
        (families.SUPERSEDED_SERIES, [Sample((), float(snapshot.superseded))]),
        (families.FUTURE_TIMESTAMPS, [Sample((), float(snapshot.ahead))]),
    ]
    if snapshot.limit:  # unknown before the first worker has made the index
        groups.append((families.SERIES_LIMIT, [Sample((), float(snapshot.limit))]))
    return groups
