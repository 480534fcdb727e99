"""Bound series, with all their label values: the hot path.

An update makes no system call and takes no lock: under the GIL, `cells[i] += x` with exact floats is one step.
"""

from __future__ import annotations

import functools
import sys
import time
from bisect import bisect_left
from collections.abc import Callable
from math import inf, isnan
from typing import Any

from jobmetrics import families, guard
from jobmetrics.errors import InstrumentError
from jobmetrics.families import Family
from jobmetrics.instruments.blocks import ExceptionCounter, InProgress, Timer
from jobmetrics.registry import NOWHERE, BoundSeries, Row, SeriesWriter, raise_to, set_at


def _exact(value: object) -> float:
    """Return a plain float for any number: a type that defines __add__ could lose updates.

    A value that is not a number becomes infinite, which every instrument drops.
    """
    try:
        return float(value)  # type: ignore[arg-type]  # the error is handled below
    except Exception as error:  # a __float__ may raise anything
        if guard.passes(error):
            raise
        return inf


LARGEST = 1e300  # larger values could make a sum infinite permanently


def _refusal(value: float, *, negative: bool = True) -> str:
    """Return the label value of the reason to drop a value. negative: whether negative values are allowed."""
    if value < 0.0 and not negative:
        return "negative"
    return "too large" if -inf < value < inf else "not finite"


def discard_updates(series: Any) -> Any:
    """Make a series discard its updates, and return it."""
    series.where = NOWHERE
    return series


class _Bound(BoundSeries):
    """A series that user code holds."""

    __slots__ = ()

    def labels(self, *labelvalues: object, **labelkwargs: object) -> Any:
        """Count and log a misuse: the series has its labels already. The returned series discards its updates."""
        guard.note("labels", InstrumentError(f"{self.family.name} has its labels already"))
        return discard_updates(type(self)(self.writer, self.family, self.values))

    def _drop(self, value: float, *, negative: bool = True) -> None:
        self.writer.drop(_refusal(value, negative=negative), self.family.name)


class BoundCounter(_Bound):
    """A counter with all its label values."""

    __slots__ = ()

    def inc(self, amount: float = 1.0, exemplar: object = None) -> None:
        """Add a number. A negative or non-finite number is dropped and counted; it does not fail a job.

        Args:
            amount: The number to add.
            exemplar: Accepted for compatibility with prometheus_client, and ignored.
        """
        if type(amount) is not float:
            amount = _exact(amount)
        if not 0.0 <= amount <= LARGEST:
            self._drop(amount, negative=False)
            return
        while True:
            row, i = self.where
            try:
                row.cells[i] += amount
                return
            except IndexError:
                if not self.writer.bind(self, self.inc, amount):
                    return

    def reset(self) -> None:
        """Set this process's part to 0, which Prometheus treats as a restart. Other processes' parts stay."""
        self.writer.erase(self, hide=False)

    def count_exceptions(
        self, exception: type[BaseException] | tuple[type[BaseException], ...] = Exception
    ) -> ExceptionCounter:
        """Count the exceptions that leave a block or a decorated function."""
        return ExceptionCounter(self, exception)


class BoundGauge(_Bound):
    """A gauge with all its label values.

    In the modes livesum, max and min its cell is this process's present value. A new cell is 0.0, and a value of 0 is
    stored as -0.0, so that an unset max or min gauge differs from one set to 0.
    """

    __slots__ = ("_is_present",)

    def __init__(self, writer: SeriesWriter, family: Family, values: tuple[str, ...]) -> None:
        super().__init__(writer, family, values)
        self._is_present = family.mode not in (families.MOST_RECENT, families.HIGH_WATER)

    def inc(self, amount: float = 1.0) -> None:
        """Add to this process's value. NaN makes it unknown until it is set; an infinite number is dropped and counted.

        In the mode mostrecent every number is counted as an error and not recorded.

        Raises:
            InstrumentError: in the mode mostrecent with `propagate_errors` on.
        """
        if type(amount) is not float:
            amount = _exact(amount)
        if not -LARGEST <= amount <= LARGEST and not isnan(amount):
            self._drop(amount)
            return
        if not self._is_present:
            why = InstrumentError(f"{self.family.name} has the mode {self.family.mode}, which only takes set()")
            guard.note("gauge", why)
            return
        while True:
            row, i = self.where
            cells = row.cells
            try:
                cells[i] = cells[i] + amount or -0.0
                return
            except IndexError:
                if not self.writer.bind(self, self.inc, amount):
                    return

    def dec(self, amount: float = 1.0) -> None:
        """Subtract from this process's value, as `inc` adds."""
        self.inc(-_exact(amount))

    def set(self, value: float) -> None:
        """Set this process's value. NaN means unknown; an infinite value is dropped and counted."""
        if type(value) is not float:
            value = _exact(value)
        if not -LARGEST <= value <= LARGEST and not isnan(value):
            self._drop(value)
            return
        while True:
            row, i = self.where
            cells = row.cells
            try:
                if self._is_present:
                    cells[i] = value or -0.0
                elif self.family.mode == families.MOST_RECENT:
                    now = time.time()
                    set_at(cells, i, value, now, now)
                else:
                    raise_to(cells, i, value, time.time())
                return
            except IndexError:
                if not self.writer.bind(self, self.set, value):
                    return

    def set_to_current_time(self) -> None:
        """Set to the seconds since the epoch."""
        self.set(time.time())

    def track_inprogress(self) -> InProgress:
        """Count a block or a decorated function while it runs."""
        return InProgress(self)

    def time(self) -> Timer:
        """Set to the seconds that a block or a decorated function took."""
        return Timer(self, "set")


class BoundSumGauge(BoundGauge):
    """A gauge of the mode sum: values outlive their processes.

    `set` sets this process's share, on top of the value that the slot's earlier owners left. All definitions of the
    metric in a process have one share.
    """

    __slots__ = ()

    def leased(self, row: Row, first: int) -> None:
        """Remember the value that earlier owners left."""
        self.writer.left(row, first)

    def inc(self, amount: float = 1.0) -> None:
        """Add to this process's share."""
        amount = _exact(amount)
        while -LARGEST <= amount <= LARGEST or isnan(amount):  # others are dropped below
            try:
                self.writer.left(*self.where)  # read before this process records in the cell
                break
            except IndexError:
                if not self.writer.bind(self, self.inc, amount):
                    return
        super().inc(amount)

    def set(self, value: float) -> None:
        """Set this process's share. NaN makes the sum unknown until it is set; infinity is dropped and counted."""
        value = _exact(value)
        if not -LARGEST <= value <= LARGEST and not isnan(value):
            self._drop(value)
            return
        while True:
            row, i = self.where
            try:
                row.cells[i] = self.writer.left(row, i) + value
                return
            except IndexError:
                if not self.writer.bind(self, self.set, value):
                    return


class BoundHistogram(_Bound):
    """A histogram with all its label values."""

    __slots__ = ("_bounds", "_sum")

    def __init__(self, writer: SeriesWriter, family: Family, values: tuple[str, ...]) -> None:
        super().__init__(writer, family, values)
        self._bounds = family.buckets
        self._sum = family.width - 1

    def observe(self, amount: float, exemplar: object = None) -> None:
        """Count a value. A non-finite value is dropped and counted.

        Args:
            amount: The value, in the metric's unit.
            exemplar: Accepted for compatibility with prometheus_client, and ignored.
        """
        if type(amount) is not float:
            amount = _exact(amount)
        if not -LARGEST <= amount <= LARGEST:
            self._drop(amount)
            return
        bucket = bisect_left(self._bounds, amount)
        while True:
            row, i = self.where
            cells = row.cells
            try:
                cells[i + self._sum] += amount  # the last cell first: an IndexError then leaves both unchanged
                cells[i + bucket] += 1.0
                return
            except IndexError:
                if not self.writer.bind(self, self.observe, amount):
                    return

    def time(self) -> Timer:
        """Observe the seconds that a block or a decorated function took."""
        return Timer(self, "observe")


def locked(update: Callable[..., None]) -> Callable[..., None]:
    """Return an update that takes the writer's lock, for builds without the GIL.

    One wrapper for each signature: passing on `*args` takes a fifth longer.
    """

    def inc(self: BoundSeries, amount: float = 1.0, exemplar: object = None) -> None:  # noqa: ARG001 - as in prometheus_client
        with self.writer.lock:
            update(self, amount)

    def set_(self: BoundSeries, value: float) -> None:
        with self.writer.lock:
            update(self, value)

    def observe(self: BoundSeries, amount: float, exemplar: object = None) -> None:  # noqa: ARG001 - as in prometheus_client
        with self.writer.lock:
            update(self, amount)

    call: Any = {"inc": inc, "set": set_, "observe": observe}[update.__name__]
    return functools.update_wrapper(call, update)


UPDATES = (
    (BoundCounter, "inc"),
    (BoundGauge, "inc"),
    (BoundGauge, "set"),
    (BoundSumGauge, "inc"),
    (BoundSumGauge, "set"),
    (BoundHistogram, "observe"),
)


def has_gil() -> bool:
    """Whether this interpreter runs one thread at a time."""
    return bool(getattr(sys, "_is_gil_enabled", lambda: True)())


if not has_gil():
    for _class, _name in UPDATES:
        setattr(_class, _name, locked(getattr(_class, _name)))
