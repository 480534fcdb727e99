"""Counter, Gauge and Histogram, bound to cells: the hot path.

They have prometheus_client's signatures and methods, so that changing one import is enough, and record into
the directory of the settings in force, from any thread of any forked process. A bound update makes no call
into the system and takes no lock: under the GIL, `cells[i] += x` with exact floats is one step.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from math import inf, nan
from typing import Generic, TypeVar

from jobmetrics import families, settings
from jobmetrics.errors import InstrumentError
from jobmetrics.families import COUNTER, GAUGE, HISTOGRAM, Family
from jobmetrics.registry import current
from jobmetrics.registry.merging import lower_to, raise_to, set_at
from jobmetrics.registry.writer import BoundSeries, Writer

Bound = TypeVar("Bound", bound=BoundSeries)

MAX_NAME = 128
MAX_LABEL_NAME = 64
MAX_LABEL_VALUE = 256
MAX_LABELS = 16
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*\Z")
_LABEL_NAME = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*\Z")
_RESERVED_SUFFIXES = ("_created", "_bucket", "_count", "_sum")
_GAUGE_MODES = {
    "livesum": families.LIVE_SUM,
    "sum": families.SUM,
    "max": families.MAX,
    "min": families.MIN,
    "mostrecent": families.MOST_RECENT,
}


def _exact(value: object) -> float:
    """A plain float, whatever number was given: a type with its own __add__ could lose updates.

    What is no number becomes NaN, which is dropped as any value that is not finite.
    """
    try:
        return float(value)  # type: ignore[arg-type]  # whatever cannot be one raises
    except Exception:  # noqa: BLE001 - a number type's own __float__ may raise anything
        return nan


class BoundCounter(BoundSeries):
    """A counter with all its label values."""

    __slots__ = ()

    def inc(self, amount: float = 1.0) -> None:
        """Add a number. One that is negative or not finite is dropped and counted: a job never fails of it."""
        if type(amount) is not float:
            amount = _exact(amount)
        if not 0.0 <= amount < inf:
            self.writer.drop("negative" if amount < 0.0 else "not finite")
            return
        while True:
            row, i = self.where
            try:
                row.cells[i] += amount
                return
            except IndexError:
                if not self.writer.bind(self, functools.partial(self.inc, amount)):
                    return

    @contextmanager
    def count_exceptions(
        self, exception: type[BaseException] | tuple[type[BaseException], ...] = Exception
    ) -> Iterator[None]:
        """Count the exceptions that leave a block or a decorated function."""
        try:
            yield
        except exception:
            self.inc()
            raise


class BoundGauge(BoundSeries):
    """A gauge with all its label values. What `set` does is its family's merge mode's business."""

    __slots__ = ()

    def inc(self, amount: float = 1.0) -> None:
        """Add; only for the modes livesum and sum. A number that is not finite is dropped and counted.

        Raises:
            InstrumentError: for a mode whose values are not added.
        """
        if type(amount) is not float:
            amount = _exact(amount)
        if not -inf < amount < inf:
            self.writer.drop("not finite")
            return
        if self.family.width != 1:
            raise InstrumentError(f"{self.family.name} has the mode {self.family.mode}, which only takes set()")
        while True:
            row, i = self.where
            try:
                row.cells[i] += amount
                return
            except IndexError:
                if not self.writer.bind(self, functools.partial(self.inc, amount)):
                    return

    def dec(self, amount: float = 1.0) -> None:
        """Take away, as `inc` adds."""
        self.inc(-_exact(amount))

    def set(self, value: float) -> None:
        """Set; with max and min the value counts only if it is a new extreme. Not finite is dropped and counted."""
        if type(value) is not float:
            value = _exact(value)
        if not -inf < value < inf:
            self.writer.drop("not finite")
            return
        mode = self.family.mode
        while True:
            row, i = self.where
            cells = row.cells
            try:
                if mode == families.MAX:
                    raise_to(cells, i, value)
                elif mode == families.MIN:
                    lower_to(cells, i, value)
                elif mode == families.MOST_RECENT:
                    set_at(cells, i, value, time.time())
                else:
                    cells[i] = value
                return
            except IndexError:
                if not self.writer.bind(self, functools.partial(self.set, value)):
                    return

    def set_to_current_time(self) -> None:
        """Set to the seconds since the epoch."""
        self.set(time.time())

    @contextmanager
    def track_inprogress(self) -> Iterator[None]:
        """Count a block or a decorated function while it runs."""
        self.inc()
        try:
            yield
        finally:
            self.dec()

    @contextmanager
    def time(self) -> Iterator[None]:
        """Set to the seconds a block or a decorated function took."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.set(time.perf_counter() - start)


class BoundHistogram(BoundSeries):
    """A histogram with all its label values."""

    __slots__ = ("_bounds", "_sum")

    def __init__(self, writer: Writer, family: Family, values: tuple[str, ...]) -> None:
        super().__init__(writer, family, values)
        self._bounds = family.buckets
        self._sum = family.width - 1

    def observe(self, amount: float) -> None:
        """Count a value, in the metric's unit. One that is not finite is dropped and counted."""
        if type(amount) is not float:
            amount = _exact(amount)
        if not -inf < amount < inf:
            self.writer.drop("not finite")
            return
        bucket = bisect_left(self._bounds, amount)
        while True:
            row, i = self.where
            cells = row.cells
            try:
                cells[i + self._sum] += amount  # the cell further out first: both or neither are there
                cells[i + bucket] += 1.0
                return
            except IndexError:
                if not self.writer.bind(self, functools.partial(self.observe, amount)):
                    return

    @contextmanager
    def time(self) -> Iterator[None]:
        """Observe the seconds a block or a decorated function took."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.observe(time.perf_counter() - start)


class Labelled(Generic[Bound]):
    """A family with its bound series by label values, as one process records them."""

    def __init__(self, bound: type[Bound], family: Family, writer: Writer | None = None) -> None:
        self._bound = bound
        self.family = family
        self._writer = writer
        self._children: dict[tuple[str, ...], Bound] = {}

    def at(self, values: tuple[str, ...]) -> Bound:
        """The series with these label values, in the family's order; they are texts already.

        Series beyond the directory's cap are not kept, so that memory stays flat.
        """
        child = self._children.get(values)
        if child is not None and not child.dropped:
            return child
        return self._new(values)

    def _new(self, values: tuple[str, ...]) -> Bound:
        writer = self._writer or current.writer()
        if self.family.type == HISTOGRAM and not self._children:
            bounds = settings.buckets_for(self.family.name, writer.buckets) or self.family.buckets
            self.family = dataclasses.replace(self.family, buckets=bounds)
        child = self._bound(writer, self.family, values)
        if len(self._children) >= writer.max_series:
            self._drop_overflowing()
        if len(self._children) < writer.max_series:
            self._children[values] = child
        return child

    def _drop_overflowing(self) -> None:
        for values, child in list(self._children.items()):
            if child.dropped:
                self._children.pop(values, None)


class _Metric(Labelled[Bound]):
    """What the three public classes share: definition, validation and labels."""

    _type: str
    _bound_class: type[Bound]

    def _define(
        self,
        name: str,
        documentation: str,
        labelnames: Iterable[str],
        namespace: str,
        subsystem: str,
        unit: str,
        mode: str = families.SUM,
        buckets: Sequence[float] = (),
    ) -> None:
        family = define(
            self._type,
            name,
            documentation,
            tuple(labelnames),
            namespace,
            subsystem,
            unit,
            mode=mode,
            buckets=buckets,
        )
        _declare(family)
        super().__init__(self._bound_class, family)

    def labels(self, *labelvalues: object, **labelkwargs: object) -> Bound:
        """The series with these label values, by position or by name.

        Raises:
            ValueError: when they are not the family's labels.
        """
        names = self.family.labels
        if labelkwargs:
            if labelvalues or sorted(labelkwargs) != sorted(names):
                raise InstrumentError(f"{self.family.name} has the labels {list(names)}, not {sorted(labelkwargs)}")
            values = tuple(label_value(labelkwargs[name]) for name in names)
        else:
            if len(labelvalues) != len(names) or not names:
                raise InstrumentError(f"{self.family.name} has {len(names)} labels, {len(labelvalues)} were given")
            values = tuple(map(label_value, labelvalues))
        return self.at(values)

    def _only(self) -> Bound:
        if self.family.labels:
            raise InstrumentError(f"{self.family.name} has labels: call labels() first")
        return self.at(())


class Counter(_Metric[BoundCounter]):
    """A number that only goes up. The name gets the suffix _total if it has none.

    `registry` and exemplars are accepted for prometheus_client's sake and ignored.
    """

    _type = COUNTER
    _bound_class = BoundCounter

    def __init__(
        self,
        name: str,
        documentation: str,
        labelnames: Iterable[str] = (),
        namespace: str = "",
        subsystem: str = "",
        unit: str = "",
        registry: object = None,
        **_ignored: object,
    ) -> None:
        self._define(name, documentation, labelnames, namespace, subsystem, unit)

    def inc(self, amount: float = 1.0, exemplar: object = None) -> None:
        """Add a number that is not negative."""
        self._only().inc(amount)

    def count_exceptions(
        self, exception: type[BaseException] | tuple[type[BaseException], ...] = Exception
    ) -> AbstractContextManager[None]:
        """Count the exceptions that leave a block or a decorated function."""
        return self._only().count_exceptions(exception)


class Gauge(_Metric[BoundGauge]):
    """A number that goes up and down.

    multiprocess_mode: how processes' values merge: 'livesum' (default), 'sum', 'max', 'min', 'mostrecent'.
    Modes that put a pid into a label ('all', 'liveall') are refused: a pid a label would grow without end.
    """

    _type = GAUGE
    _bound_class = BoundGauge

    def __init__(
        self,
        name: str,
        documentation: str,
        labelnames: Iterable[str] = (),
        namespace: str = "",
        subsystem: str = "",
        unit: str = "",
        registry: object = None,
        multiprocess_mode: str = "livesum",
        **_ignored: object,
    ) -> None:
        mode = _GAUGE_MODES.get(multiprocess_mode)
        if mode is None:
            raise InstrumentError(
                f"multiprocess_mode={multiprocess_mode!r} is not allowed for {name}; it takes {', '.join(_GAUGE_MODES)}"
            )
        self._define(name, documentation, labelnames, namespace, subsystem, unit, mode=mode)

    def inc(self, amount: float = 1.0) -> None:
        """Add to it."""
        self._only().inc(amount)

    def dec(self, amount: float = 1.0) -> None:
        """Take away from it."""
        self._only().dec(amount)

    def set(self, value: float) -> None:
        """Set it."""
        self._only().set(value)

    def set_to_current_time(self) -> None:
        """Set it to the seconds since the epoch."""
        self._only().set_to_current_time()

    def track_inprogress(self) -> AbstractContextManager[None]:
        """Count a block or a decorated function while it runs."""
        return self._only().track_inprogress()

    def time(self) -> AbstractContextManager[None]:
        """Set it to the seconds a block or a decorated function took."""
        return self._only().time()


class Histogram(_Metric[BoundHistogram]):
    """Counts values by size. buckets: upper bounds in the metric's unit, +Inf may be left out."""

    _type = HISTOGRAM
    _bound_class = BoundHistogram

    def __init__(
        self,
        name: str,
        documentation: str,
        labelnames: Iterable[str] = (),
        namespace: str = "",
        subsystem: str = "",
        unit: str = "",
        registry: object = None,
        buckets: Sequence[float] | None = None,
        **_ignored: object,
    ) -> None:
        self._define(
            name,
            documentation,
            labelnames,
            namespace,
            subsystem,
            unit,
            buckets=buckets or settings.DEFAULT_BUCKETS,
        )

    def observe(self, amount: float, exemplar: object = None) -> None:
        """Count a value."""
        self._only().observe(amount)

    def time(self) -> AbstractContextManager[None]:
        """Observe the seconds a block or a decorated function took."""
        return self._only().time()


def label_value(value: object) -> str:
    """A label value as text, cut to what a label may hold."""
    text = value if type(value) is str else str(value)
    return text if len(text) <= MAX_LABEL_VALUE else text[: MAX_LABEL_VALUE - 1] + "…"


_declared: dict[str, Family] = {}


def _declare(family: Family) -> None:
    """Refuse a second, different definition within this process."""
    known = _declared.setdefault(family.name, family)
    if (known.type, known.labels, known.mode, known.buckets) != (
        family.type, family.labels, family.mode, family.buckets,
    ):  # fmt: skip
        raise InstrumentError(f"{family.name} is already defined in this process, as another kind of metric")


def define(
    type_: str,
    name: str,
    documentation: str,
    labels: tuple[str, ...],
    namespace: str = "",
    subsystem: str = "",
    unit: str = "",
    *,
    mode: str = families.SUM,
    buckets: Sequence[float] = (),
) -> Family:
    """A user's family, checked after Prometheus's rules.

    Raises:
        InstrumentError: one line that names what is wrong and what is allowed.
    """
    full = "_".join(filter(None, (namespace, subsystem, name)))
    base = full[: -len("_total")] if type_ == COUNTER and full.endswith("_total") else full
    if unit and not base.endswith("_" + unit):
        base = f"{base}_{unit}"
    full = base + "_total" if type_ == COUNTER else base
    if not _NAME.match(full) or len(full) > MAX_NAME:
        raise InstrumentError(f"{full!r} is no metric name: letters, digits, _ and :, at most {MAX_NAME} characters")
    if base.endswith(_RESERVED_SUFFIXES) or (type_ != COUNTER and base.endswith(("_total", "_info"))):
        raise InstrumentError(f"{full!r} ends with a suffix that Prometheus uses itself")
    if any(full == own.name for own in families.BUILT_IN):
        raise InstrumentError(f"{full!r} is a metric of jobmetrics itself")
    _check_labels(full, type_, labels)
    bounds: tuple[float, ...] = ()
    if type_ == HISTOGRAM:
        bounds = settings.parse("buckets", {full: tuple(buckets)}, shown_as="buckets")[full]
    return Family(full, type_, documentation, labels, mode, bounds, families.RECORDED, unit)


def _check_labels(name: str, type_: str, labels: tuple[str, ...]) -> None:
    if len(labels) > MAX_LABELS or len(set(labels)) != len(labels):
        raise InstrumentError(f"{name} takes at most {MAX_LABELS} labels, each once")
    for label in labels:
        if not _LABEL_NAME.match(label) or label.startswith("__") or len(label) > MAX_LABEL_NAME:
            raise InstrumentError(
                f"{label!r} is no label name for {name}: letters, digits and _, at most {MAX_LABEL_NAME} characters, "
                "not starting with __"
            )
        if label == "le" and type_ == HISTOGRAM:
            raise InstrumentError(f"{name} may not have the label 'le': a histogram has its own")
