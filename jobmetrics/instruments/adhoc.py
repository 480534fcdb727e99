"""Metrics without a definition, declared on first use.

The first use in a process sets the type and the label names. A contradicting use is counted, logged and not recorded;
it does not raise into a job.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from jobmetrics import families, runtime
from jobmetrics.errors import InstrumentError
from jobmetrics.families import COUNTER, GAUGE, HISTOGRAM, Family
from jobmetrics.guard import guarded
from jobmetrics.instruments.blocks import TimedBlock
from jobmetrics.instruments.bound import BoundCounter, BoundGauge, BoundHistogram, BoundSumGauge
from jobmetrics.instruments.definition import Labelled, declare, declared, define, defined, label_value
from jobmetrics.registry import current
from jobmetrics.settings import DEFAULT_BUCKETS

_HELP = "Recorded without a definition."


class AdHocMetrics:
    """Metrics that this process recorded without a definition, by type, name, unit and label names."""

    def __init__(self) -> None:
        self.known: dict[tuple[str, str, str, tuple[str, ...]], Labelled[Any]] = {}


@guarded("increment")
def increment(name: str, amount: float = 1.0, /, **labels: object) -> None:
    """Add to a counter without a definition.

    Args:
        name: The counter's name. The suffix _total is added if it is missing.
        amount: The number to add, in the metric's unit. A negative number is dropped and counted.
        labels: Label values by name.

    Example:
        >>> from jobmetrics import increment
        >>> increment("shop_revenue_euros", 12.5, region="eu")  # shop_revenue_euros_total{region="eu"}
    """
    _series(COUNTER, name, labels).inc(amount)


@guarded("set_gauge")
def set_gauge(name: str, value: float, /, **labels: object) -> None:
    """Set a gauge without a definition. Of the values of all processes, the most recent one is shown.

    Args:
        name: The gauge's name.
        value: The value, in the metric's unit.
        labels: Label values by name.

    Example:
        >>> from jobmetrics import set_gauge
        >>> set_gauge("shop_stock", 7, item="chair")
    """
    _series(GAUGE, name, labels).set(value)


@guarded("observe")
def observe(name: str, value: float, /, **labels: object) -> None:
    """Count a value in a histogram without a definition.

    Args:
        name: The histogram's name. The setting `buckets` may have its bounds; else it has the default ones.
        value: The value, in the metric's unit.
        labels: Label values by name.

    Example:
        >>> from jobmetrics import observe
        >>> observe("shop_basket_items", 3)
    """
    _series(HISTOGRAM, name, labels).observe(value)


class duration(TimedBlock[float]):  # noqa: N801 - it is used as a function is
    """Count the duration of a block, in seconds, in a histogram without a definition.

    It is a context manager and a decorator, sync and async, inside and outside jobs. The duration is counted even if
    the block raises. Use a new object for each `with` block; a decorator works for all calls.

    Args:
        name: The histogram's name. The suffix _seconds is added if it is missing.
        labels: Label values by name.

    Example:
        >>> from jobmetrics import duration
        >>> with duration("shop_checkout", region="eu"):  # shop_checkout_seconds{region="eu"}
        ...     pass
    """

    __slots__ = ("_labels", "_name")

    def __init__(self, name: str, /, **labels: object) -> None:
        super().__init__()
        self._name = name
        self._labels = labels

    def begin(self) -> float:
        return time.perf_counter()

    @guarded("duration")
    def end(self, begun: float) -> None:
        seconds = time.perf_counter() - begun
        _series(HISTOGRAM, self._name, self._labels, "seconds").observe(seconds)


def _series(type_: str, name: str, labels: dict[str, object], unit: str = "") -> Any:
    """Return the bound series.

    Raises:
        InstrumentError: when name or labels are not allowed, or differ from the first use.
    """
    key = (type_, name, unit, tuple(labels))
    known = runtime.state(AdHocMetrics).known
    metric = known.get(key)
    if metric is None:
        metric = _metric(type_, name, tuple(labels), unit)
        known[key] = metric
    bound = metric.at(tuple(label_value(labels[label]) for label in metric.family.labels))
    bound.writer.look()
    return bound


def _metric(type_: str, name: str, labels: tuple[str, ...], unit: str) -> Labelled[Any]:
    if not isinstance(name, str):
        raise InstrumentError(f"{name!r} is not a valid metric name: it takes a string")
    most = current.writer().max_series
    if len(runtime.state(AdHocMetrics).known) >= most:
        raise InstrumentError(f"{name!r} is one metric too many: max_series is {most}")
    mode = families.MOST_RECENT if type_ == GAUGE else families.SUM
    family = define(type_, name, _HELP, labels, unit=unit, mode=mode, buckets=DEFAULT_BUCKETS)
    before = declared(family.name)
    if before is not None and before[:2] == family[:2] and set(before.labels) == set(labels):
        family = before  # defined in code, or with its labels in another order
    else:
        declare(family)
    in_code = defined(family.name)
    # A metric declared in another test's registry may have the same name and another type.
    if in_code is None or in_code.family.type != type_ or set(in_code.family.labels) != set(labels):
        return Labelled(_bound_class(family), family)
    return in_code


def _bound_class(family: Family) -> Any:
    if family.type == GAUGE:
        return BoundSumGauge if family.mode == families.SUM else BoundGauge
    return BoundCounter if family.type == COUNTER else BoundHistogram


class Batch:
    """Updates that are applied together at the end of a block, and discarded if it raises.

    Example:
        >>> from jobmetrics import Batch, Counter, Histogram
        >>> ROWS = Counter("shop_rows", "Rows imported.", ["table"])
        >>> SIZE = Histogram("shop_row_bytes", "Size of a row.", ["table"], buckets=(100, 1000))
        >>> with Batch() as batch:
        ...     batch.inc(ROWS.labels("orders"), 3)
        ...     batch.observe(SIZE.labels("orders"), 12.5)
    """

    def __init__(self) -> None:
        self._updates: list[tuple[Callable[[float], None], float]] = []

    def inc(self, series: BoundCounter | BoundGauge, amount: float = 1.0) -> None:
        """Add to a counter or gauge, in the metric's unit."""
        self._updates.append((series.inc, amount))

    def set(self, series: BoundGauge, value: float) -> None:
        """Set a gauge to a value in its unit."""
        self._updates.append((series.set, value))

    def observe(self, series: BoundHistogram, amount: float) -> None:
        """Count a value in a histogram, in the metric's unit."""
        self._updates.append((series.observe, amount))

    def apply(self) -> None:
        """Apply the collected updates in order."""
        updates, self._updates = self._updates, []
        for update, value in updates:
            update(value)

    def __enter__(self) -> Batch:  # noqa: PYI034 - Self is not in the standard library of Python 3.10
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.apply()
        self._updates = []
