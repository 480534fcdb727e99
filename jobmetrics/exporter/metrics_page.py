"""One scrape: turn readings of the directory, the brokers and the exporter itself into metrics."""

from __future__ import annotations

import functools
import itertools
import math
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence

from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import ALLOWUTF8
from prometheus_client.registry import Collector
from prometheus_client.samples import Sample as Line
from prometheus_client.utils import floatToGoString

from jobmetrics import families
from jobmetrics.errors import SettingsError
from jobmetrics.exporter.collectors import BackgroundCollectors, CollectorState
from jobmetrics.exporter.registry_reader import DirectoryReading, RegistryDirectory, WorkerMemory
from jobmetrics.families import BUILT_IN, COUNTER, HISTOGRAM, SAMPLE_SUFFIXES, Family
from jobmetrics.log_throttle import ThrottledLog
from jobmetrics.registry.read import Sample, Snapshot

Group = tuple[Family, Sequence[Sample]]


class MetricsPage:
    """Writes the metrics in a format that the client accepts. collect: returns the current metrics."""

    def __init__(self, collect: Callable[[], Sequence[Metric]]) -> None:
        self._collect = collect
        self._lock = threading.Lock()  # `collect` is for one thread at a time

    def text(self) -> bytes:
        """Return the current metrics in Prometheus' text format."""
        return self.write("")[0]

    def write(self, accept: str) -> tuple[bytes, str]:
        """Return the current metrics in a format that the Accept header allows, and their content type."""
        try:
            encoder, content_type = choose_encoder(accept)
        except TypeError:  # the header has a version that is not a number (prometheus_client 0.26)
            encoder, content_type = choose_encoder("")
        with self._lock:
            metrics = _Fixed(self._collect())
        # The names are already checked. Any other escaping replaces a colon in a sample's name by _.
        return encoder(metrics, escaping=ALLOWUTF8), content_type  # type: ignore[call-arg]  # typed without it


class _Fixed(Collector):
    """Adapts a list of metrics to prometheus_client's encoders."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


class Scrape:
    """Collects the metrics of one scrape. version: the version of jobmetrics."""

    def __init__(
        self, directory: RegistryDirectory, collectors: BackgroundCollectors, exposition: Exposition, version: str
    ) -> None:
        self._directory = directory
        self._collectors = collectors
        self._exposition = exposition
        self._version = version
        self._memory = WorkerMemory()

    def collect(self) -> list[Metric]:
        """Return the current metrics."""
        reading = self._directory.read()
        groups: list[Group] = [*_own(reading, self._version), *_collected(self._collectors.states())]
        if reading.snapshot is not None:
            groups += _recorded(reading.snapshot, self._memory)
        return self._exposition.metrics(groups, left_out=families.INVALID_FAMILIES)


def _recorded(snapshot: Snapshot, memory: WorkerMemory) -> list[Group]:
    """Return what workers and producers recorded. The oldest start is absent while no job runs."""
    oldest = [Sample(active.values, active.oldest) for active in snapshot.active if active.oldest is not None]
    resident = [Sample((system,), size) for system, size in sorted(memory.by_system(snapshot.owners).items())]
    return [
        *snapshot.families,
        (families.JOBS_ACTIVE, [Sample(active.values, float(active.count)) for active in snapshot.active]),
        (families.JOBS_ACTIVE_OLDEST, oldest),
        (families.JOBS_UNRESOLVED, [Sample(active.values, float(active.unresolved)) for active in snapshot.active]),
        (families.WORKER_RESIDENT_MEMORY, resident),
    ]


def _collected(states: Sequence[CollectorState]) -> list[Group]:
    """Return the readings of brokers and the state of the collectors. A failed reading is absent."""
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
            if family.labels == reading.family.labels:  # if two collectors disagree, the first one wins
                samples.setdefault(reading.values, Sample(reading.values, float(reading.value)))
    found.setdefault(families.JOBS_QUEUE_DEPTH.name, (families.JOBS_QUEUE_DEPTH, {}))
    return [
        *((family, list(samples.values())) for family, samples in found.values()),
        (families.COLLECTOR_UP, up),
        (families.COLLECTOR_DURATION, duration),
        (families.COLLECTOR_LAST_SUCCESS, last_success),
    ]


_LARGEST = 10  # metrics that are shown with their number of series


def _own(reading: DirectoryReading, version: str) -> list[Group]:
    """Return the exporter's own metrics. Those about the directory are absent while it cannot be read."""
    snapshot = reading.snapshot
    groups: list[Group] = [
        (families.BUILD_INFO, [Sample((version,), 1.0)]),
        (families.DIRECTORY_UP, [Sample((), float(snapshot is not None))]),
        (families.SCRAPE_DURATION, [Sample((), reading.seconds)]),
    ]
    if snapshot is None:
        return groups
    largest = snapshot.by_metric.most_common(_LARGEST)
    slots = {"live": snapshot.live, "free": snapshot.free, "damaged": snapshot.damaged}
    groups += [
        (families.SLOTS, [Sample((state,), float(count)) for state, count in slots.items()]),
        (families.SERIES, [Sample((), float(snapshot.series))]),
        (families.SERIES_BY_METRIC, [Sample((name,), float(count)) for name, count in largest]),
        (families.SUPERSEDED_SERIES, [Sample((), float(snapshot.superseded))]),
        (families.FUTURE_TIMESTAMPS, [Sample((), float(snapshot.ahead))]),
    ]
    if snapshot.limit:  # unknown until the first worker creates the index
        groups.append((families.SERIES_LIMIT, [Sample((), float(snapshot.limit))]))
    return groups


_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*\Z")
_LABEL = re.compile(r"(?!__name__\Z)[a-zA-Z_][a-zA-Z0-9_]*\Z")
_TOTAL = "_total"

# By name, type and labels: a user's metric may have the name of a built-in one.
_RANK = {(family.name, family.type, family.labels): rank for rank, family in enumerate(BUILT_IN)}
_RESERVED_LABELS = frozenset({"le", "quantile", *(label for family in BUILT_IN for label in family.labels)})


class Exposition:
    """Converts families and samples to prometheus_client's metrics.

    Args:
        namespace: Prefix of every name; empty for none.
        labels: Constant labels of every sample.
        log: Logs families that cannot be shown.

    Raises:
        SettingsError: A metric of jobmetrics uses a constant label itself.
    """

    def __init__(self, namespace: str, labels: Mapping[str, str], log: ThrottledLog) -> None:
        for label in labels:
            if label in _RESERVED_LABELS:
                raise SettingsError(f"the constant label {label!r} is not allowed: jobmetrics uses that label itself")
        self._prefix = f"{namespace}_" if namespace else ""
        self._labels = dict(labels)
        self._log = log

    def metrics(
        self, groups: Iterable[tuple[Family, Sequence[Sample]]], left_out: Family | None = None
    ) -> list[Metric]:
        """Convert families to metrics, the built-in ones first.

        A family is left out, logged and counted if it is not valid, if another metric has its name, or if it fails for
        any other reason. Otherwise Prometheus would refuse the whole page.

        Args:
            groups: Families with their samples.
            left_out: The gauge that shows the number of families left out; None for no such gauge.
        """
        taken: dict[str, str] = {} if left_out is None else {left_out.name: left_out.name}
        found = []
        missing = 0
        for family, samples in sorted(groups, key=_rank):
            try:
                found.append(self._checked(family, samples, taken))
            except Exception as error:  # noqa: BLE001 - a foreign writer may have declared anything
                missing += 1
                self._log.warning(f"family {family.name}", "jobmetrics: %s is not shown: %s", family.name, error)
        if left_out is not None:
            found.append(self._metric(self._prefix + left_out.name, left_out, [Sample((), float(missing))]))
        return found

    def _checked(self, family: Family, samples: Sequence[Sample], taken: dict[str, str]) -> Metric:
        """Convert a family and add its names to `taken`. Raises ValueError with the reason if it cannot be shown."""
        _check(family)
        names = family.exposed_names
        other = next((taken[name] for name in names if name in taken), None)
        if other is not None:
            raise ValueError(f"its name clashes with the name of {other}")
        metric = self._metric(self._prefix + family.base, family, samples)
        taken.update(dict.fromkeys(names, family.name))
        return metric

    def _metric(self, name: str, family: Family, samples: Sequence[Sample]) -> Metric:
        unit = family.unit if name.endswith(f"_{family.unit}") else ""  # OpenMetrics requires it at the end of the name
        irregular = family.type == HISTOGRAM and _can_fall(family, samples)
        metric = Metric(name, _unicode(family.help), "unknown" if irregular else family.type, unit)
        own = self._labels.items()
        constant = {label: value for label, value in own if label not in family.labels} if own else {}
        if family.type == HISTOGRAM:
            metric.samples = _histogram(name, family, samples, constant)
            if irregular:  # each name is then a separate metric
                metric.samples.sort(key=lambda line: line.name)
        else:
            shown = name + _TOTAL if family.type == COUNTER else name
            metric.samples = [
                Line(shown, _labels(family.labels, sample.values, constant), sample.value) for sample in samples
            ]
        return metric


def _rank(group: tuple[Family, Sequence[Sample]]) -> int:
    family = group[0]
    return _RANK.get((family.name, family.type, family.labels), len(_RANK))


def _can_fall(family: Family, samples: Sequence[Sample]) -> bool:
    """Whether a histogram's sum can fall. OpenMetrics forbids it, and a strict parser refuses the page."""
    return min(family.buckets, default=0.0) < 0.0 or any(sample.sum < 0.0 for sample in samples)


def _histogram(name: str, family: Family, samples: Sequence[Sample], constant: dict[str, str]) -> list[Line]:
    """Return the lines of a histogram. The count is the +Inf bucket's, so that the two always agree."""
    bucket, count, total = f"{name}_bucket", f"{name}_count", f"{name}_sum"
    bounds = _bounds(family.buckets)
    lines: list[Line] = []
    add = lines.append  # called thousands of times a scrape
    for sample in samples:
        labels = _labels(family.labels, sample.values, constant)
        cumulated = 0.0
        for bound, observations in zip(bounds, sample.buckets, strict=True):
            cumulated += observations
            add(Line(bucket, {**labels, "le": bound}, cumulated))
        add(Line(count, labels, cumulated))
        add(Line(total, labels, sample.sum))
    return lines


@functools.lru_cache(maxsize=256)
def _bounds(buckets: tuple[float, ...]) -> tuple[str, ...]:
    return (*(str(floatToGoString(bound)) for bound in buckets), "+Inf")  # type: ignore[no-untyped-call]  # ships no types


def _labels(names: tuple[str, ...], values: tuple[str, ...], constant: dict[str, str]) -> dict[str, str]:
    labels = dict(zip(names, values))  # noqa: B905 - the reader checked the length; this is the inner loop
    if constant:
        labels.update(constant)
    for label, value in labels.items():
        if not value.isascii():
            labels[label] = _unicode(value)
    return labels


def _unicode(text: str) -> str:
    """Replace lone surrogates by escapes. Python and the directory allow them, UTF-8 does not."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _check(family: Family) -> None:
    """Raise ValueError with the reason if a family is not valid. A foreign writer may declare anything."""
    if family.type not in SAMPLE_SUFFIXES:
        raise ValueError(f"its type {family.type!r} is unknown")
    if not _NAME.match(family.name) or not family.base:
        raise ValueError("this is not a valid metric name")
    labels = [*family.labels, "le"] if family.type == HISTOGRAM else list(family.labels)
    if len(set(labels)) != len(labels) or not all(_LABEL.match(label) for label in labels):
        raise ValueError(f"its label names {', '.join(family.labels)} are not allowed")
    bounds = (-math.inf, *family.buckets, math.inf)
    if not all(low < high for low, high in itertools.pairwise(bounds)):
        raise ValueError("its buckets are not ascending and finite")
