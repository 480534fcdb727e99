"""Counter, Gauge and Histogram, with the arguments and methods of prometheus_client."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from jobmetrics import families, guard, settings
from jobmetrics.errors import InstrumentError
from jobmetrics.families import COUNTER, GAUGE, HISTOGRAM
from jobmetrics.guard import guarded
from jobmetrics.instruments.blocks import ExceptionCounter, InProgress, Timer
from jobmetrics.instruments.bound import BoundCounter, BoundGauge, BoundHistogram, BoundSumGauge, discard_updates
from jobmetrics.instruments.definition import GAUGE_MODES, Bound, Labelled, declare, define, label_value
from jobmetrics.registry import current, zeros


class _Metric(Labelled[Bound]):
    """The base of the three public classes: definition, validation and labels.

    Two shortcuts save time in each update: `labels` by position looks its values up before it checks them, and `_only`
    calls `look` only when it is due. A test holds both equal to `at` and `look`.
    """

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
        declare(family)
        super().__init__(self._bound_class, family)
        if not family.labels:
            zeros.define(self)
            current.show_zeros()

    def labels(self, *labelvalues: object, **labelkwargs: object) -> Bound:
        """Return the series with these label values, by position or by name.

        Wrong labels are counted and logged, not raised into a job; the returned series then discards its updates.

        Raises:
            InstrumentError: for wrong labels with `propagate_errors` on. It is a ValueError.
        """
        if not labelkwargs and self.family.labels:
            try:
                known = self._children[labelvalues]  # type: ignore[index]  # the keys are tuples of strings
                if not known.dropped:
                    known.writer.look()
                    return known
            except (KeyError, TypeError):
                pass
        try:
            bound = self.at(self._values(labelvalues, labelkwargs))
            bound.writer.look()
            return bound
        except Exception as error:  # noqa: BLE001 - a __str__ may raise anything
            return self._misused(error)

    def _new(self, values: tuple[str, ...]) -> Bound:
        child = super()._new(values)
        if values:
            zeros.request(child)
            child.writer.show_zeros()
        return child

    @guarded("remove")
    def remove(self, *labelvalues: object) -> None:
        """Hide the series with these label values until it is requested or recorded again.

        Values of other processes in it stay visible. Wrong label values are counted as an error. A series that this
        process does not have is left unchanged.
        """
        self._remove(self._values(labelvalues, {}))

    @guarded("remove")
    def remove_by_labels(self, labels: Mapping[str, object]) -> None:
        """Remove all series with these label values, as `remove` does; none without labels."""
        names = self.family.labels
        if not set(labels) <= set(names):
            raise InstrumentError(f"{self.family.name} has the labels {list(names)}, not {sorted(labels)}")
        wanted = {names.index(name): label_value(value) for name, value in labels.items()}
        if wanted:
            for values in self._children.copy():
                if all(values[i] == value for i, value in wanted.items()):
                    self._remove(values)

    @guarded("remove")
    def clear(self) -> None:
        """Remove all series of this process, as `remove` does. A metric without labels stays unchanged."""
        if self.family.labels:
            for values in self._children.copy():
                self._remove(values)

    def _remove(self, values: tuple[str, ...]) -> None:
        child = self._children.pop(values, None)
        if child is not None:
            child.writer.erase(child, hide=True)

    def _values(self, labelvalues: tuple[object, ...], labelkwargs: dict[str, object]) -> tuple[str, ...]:
        names = self.family.labels
        if labelkwargs:
            if labelvalues or sorted(labelkwargs) != sorted(names):
                raise InstrumentError(f"{self.family.name} has the labels {list(names)}, not {sorted(labelkwargs)}")
            return tuple(label_value(labelkwargs[name]) for name in names)
        if len(labelvalues) != len(names) or not names:
            raise InstrumentError(
                f"{self.family.name} has the labels {list(names)}; labels() got {len(labelvalues)} values"
            )
        return tuple(map(label_value, labelvalues))

    def _only(self) -> Bound:
        bound = self._children.get(())
        if bound is None or bound.dropped:
            if self.family.labels:
                why = InstrumentError(f"{self.family.name} is missing label values: call labels() first")
                return self._misused(why)
            bound = self._new(())
        writer = bound.writer
        if writer.clock() >= writer.check_at:  # as look() does
            writer.look()
        return bound

    def _misused(self, error: Exception) -> Bound:
        """Count and log a misuse. Returns a series that discards its updates."""
        guard.note("labels", error)
        instead: Bound = discard_updates(self._bound(current.writer(), self.family, ()))
        return instead


class Counter(_Metric[BoundCounter]):
    """A number that only goes up.

    Args:
        name: The name. The suffix _total is added if it is missing.
        documentation: The help text.
        labelnames: The names of its labels.
        namespace: First part of the name, joined with _.
        subsystem: Second part of the name, joined with _.
        unit: Unit of the values; last part of the name, added with _ if it is missing.
        registry: Accepted for compatibility with prometheus_client, and ignored.

    Raises:
        InstrumentError: The definition is not allowed, or contradicts one of this process.

    Example:
        >>> from jobmetrics import Counter
        >>> ROWS = Counter("shop_rows", "Rows imported.", ["table"])  # shop_rows_total
        >>> ROWS.labels("orders").inc(3)
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
    ) -> None:
        self._define(name, documentation, labelnames, namespace, subsystem, unit)

    def inc(self, amount: float = 1.0, exemplar: object = None) -> None:
        """Add a number.

        Args:
            amount: The number, in the metric's unit. A negative or non-finite number is dropped and counted.
            exemplar: Accepted for compatibility with prometheus_client, and ignored.
        """
        self._only().inc(amount)

    def reset(self) -> None:
        """Set this process's part to 0, which Prometheus treats as a restart. Other processes' parts stay."""
        self._only().reset()

    def count_exceptions(
        self, exception: type[BaseException] | tuple[type[BaseException], ...] = Exception
    ) -> ExceptionCounter:
        """Count the exceptions that leave a block or a decorated function."""
        return self._only().count_exceptions(exception)


class Gauge(_Metric[BoundGauge]):
    """A number that goes up and down.

    Args:
        name: The name.
        documentation: The help text.
        labelnames: The names of its labels.
        namespace: First part of the name, joined with _.
        subsystem: Second part of the name, joined with _.
        unit: Unit of the values; last part of the name, added with _ if it is missing.
        registry: Accepted for compatibility with prometheus_client, and ignored.
        multiprocess_mode: How the values of processes merge: 'livesum' (the sum of the living), 'sum', 'max', 'min' or
            'mostrecent'. Modes with a label for the pid ('all', 'liveall') are refused, because the number of series
            would grow without limit.

    Raises:
        InstrumentError: The definition is not allowed, or contradicts one of this process.

    Example:
        >>> from jobmetrics import Gauge
        >>> OPEN = Gauge("shop_open_files", "Files open now.")
        >>> with OPEN.track_inprogress():
        ...     OPEN.inc(2)
        ...     OPEN.dec(2)
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
    ) -> None:
        mode = GAUGE_MODES.get(multiprocess_mode)
        if mode is None:
            raise InstrumentError(
                f"multiprocess_mode={multiprocess_mode!r} is not allowed for {name}; it takes {', '.join(GAUGE_MODES)}"
            )
        if mode == families.SUM:
            self._bound_class = BoundSumGauge
        self._define(name, documentation, labelnames, namespace, subsystem, unit, mode=mode)

    def inc(self, amount: float = 1.0) -> None:
        """Add to this process's value, in the metric's unit."""
        self._only().inc(amount)

    def dec(self, amount: float = 1.0) -> None:
        """Subtract from this process's value, in the metric's unit."""
        self._only().dec(amount)

    def set(self, value: float) -> None:
        """Set this process's value, in the metric's unit. NaN means unknown."""
        self._only().set(value)

    def set_to_current_time(self) -> None:
        """Set to the seconds since the epoch."""
        self._only().set_to_current_time()

    def track_inprogress(self) -> InProgress:
        """Count a block or a decorated function while it runs."""
        return self._only().track_inprogress()

    def time(self) -> Timer:
        """Set to the seconds that a block or a decorated function took. The timer's `labels` selects the series."""
        return Timer(self, "set")


class Histogram(_Metric[BoundHistogram]):
    """Counts values by size.

    Args:
        name: The name.
        documentation: The help text.
        labelnames: The names of its labels.
        namespace: First part of the name, joined with _.
        subsystem: Second part of the name, joined with _.
        unit: Unit of the values; last part of the name, added with _ if it is missing.
        registry: Accepted for compatibility with prometheus_client, and ignored.
        buckets: Upper bounds in the metric's unit, ascending; +Inf is optional. The setting `buckets` overrides them.

    Raises:
        InstrumentError: The definition is not allowed, or contradicts one of this process.

    Example:
        >>> from jobmetrics import Histogram
        >>> SIZE = Histogram("shop_upload_bytes", "Size of uploads.", buckets=(1e3, 1e6, 1e9))
        >>> SIZE.observe(2048)
        >>> DURATION = Histogram("shop_upload_seconds", "Duration of uploads.")
        >>> with DURATION.time():
        ...     pass
    """

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
        buckets: Iterable[float] | None = None,
    ) -> None:
        self._define(
            name,
            documentation,
            labelnames,
            namespace,
            subsystem,
            unit,
            buckets=settings.DEFAULT_BUCKETS if buckets is None else tuple(buckets),
        )

    def observe(self, amount: float, exemplar: object = None) -> None:
        """Count a value.

        Args:
            amount: The value, in the metric's unit. A non-finite value is dropped and counted.
            exemplar: Accepted for compatibility with prometheus_client, and ignored.
        """
        self._only().observe(amount)

    def time(self) -> Timer:
        """Observe the seconds that a block or a decorated function took. The timer's `labels` selects the series."""
        return Timer(self, "observe")
