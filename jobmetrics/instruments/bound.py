"""One series each, with all its label values: the hot path.

A bound update makes no system call and takes no lock: under the GIL, `cells[i] += x` with exact floats is one step.
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
    """A plain float, whatever number was given: a type with its own __add__ could lose updates.

    What is no number becomes infinite, which every instrument drops.
    """
    try:
        return float(value)  # type: ignore[arg-type]  # whatever cannot be one raises
    except Exception as error:  # a number type's own __float__ may raise anything
        if guard.passes(error):
            raise
        return inf


LARGEST = 1e300  # what is larger could make a sum infinite, for good


def _refusal(value: float, *, negative: bool = True) -> str:
    """Why a value is dropped, as the label of the dropped updates says it. negative: whether such may be recorded."""
    if value < 0.0 and not negative:
        return "negative"
    return "too large" if -inf < value < inf else "not finite"


def nowhere(series: Any) -> Any:
    """The same series, recording nothing from now on."""
    series.where = NOWHERE
    return series


class _Bound(BoundSeries):
    """A series as a job holds it."""

    __slots__ = ()

    def labels(self, *labelvalues: object, **labelkwargs: object) -> Any:
        """A misuse: the series has its labels. Counted and logged; the series returned records nothing."""
        guard.note("labels", InstrumentError(f"{self.family.name} has its labels already"))
        return nowhere(type(self)(self.writer, self.family, self.values))

    def _drop(self, value: float, *, negative: bool = True) -> None:
        self.writer.drop(_refusal(value, negative=negative), self.family.name)


class BoundCounter(_Bound):
    """A counter with all its label values."""

    __slots__ = ()

    def inc(self, amount: float = 1.0, exemplar: object = None) -> None:
        """Add a number. One that is negative or not finite is dropped and counted: a job never fails of it.

        exemplar: for prometheus_client's sake; ignored.
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
        """Begin at 0 again, which Prometheus takes for a restart; other processes' parts stay."""
        self.writer.erase(self, hide=False)

    def count_exceptions(
        self, exception: type[BaseException] | tuple[type[BaseException], ...] = Exception
    ) -> ExceptionCounter:
        """Count the exceptions that leave a block or a decorated function."""
        return ExceptionCounter(self, exception)


class BoundGauge(_Bound):
    """A gauge with all its label values.

    For the modes livesum, max and min its cell is this process's present value: a new cell is 0.0, and a value of 0
    is stored as -0.0, so that a max or min gauge shows whether it was set.
    """

    __slots__ = ("_is_present",)

    def __init__(self, writer: SeriesWriter, family: Family, values: tuple[str, ...]) -> None:
        super().__init__(writer, family, values)
        self._is_present = family.mode not in (families.MOST_RECENT, families.HIGH_WATER)

    def inc(self, amount: float = 1.0) -> None:
        """Add to this process's value; NaN makes it unknown until it is set. What is infinite is dropped and counted,
        and so is any number where the mode is mostrecent: with `propagate_errors` on that raises InstrumentError.
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
        """Take away, as `inc` adds."""
        self.inc(-_exact(amount))

    def set(self, value: float) -> None:
        """Set this process's value. NaN means unknown. An infinite value is dropped and counted."""
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
        """Set to the seconds a block or a decorated function took."""
        return Timer(self, "set")


class BoundSumGauge(BoundGauge):
    """A gauge whose values outlive their processes: `set` sets this process's share, on top of what the
    slot's earlier owners left. All definitions of the metric in a process have one share."""

    __slots__ = ()

    def leased(self, row: Row, first: int) -> None:
        """Remember what earlier owners left."""
        self.writer.left(row, first)

    def inc(self, amount: float = 1.0) -> None:
        """Add to this process's share."""
        amount = _exact(amount)
        while -LARGEST <= amount <= LARGEST or isnan(amount):  # what is neither is dropped below
            try:
                self.writer.left(*self.where)  # noted before anything of this process is in the cell
                break
            except IndexError:
                if not self.writer.bind(self, self.inc, amount):
                    return
        super().inc(amount)

    def set(self, value: float) -> None:
        """Set this process's share. NaN makes the sum unknown until it is set; infinite is dropped and counted."""
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
        """Count a value, in the metric's unit. One that is not finite is dropped and counted.

        exemplar: for prometheus_client's sake; ignored.
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
                cells[i + self._sum] += amount  # the cell further out first: both or neither are there
                cells[i + bucket] += 1.0
                return
            except IndexError:
                if not self.writer.bind(self, self.observe, amount):
                    return

    def time(self) -> Timer:
        """Observe the seconds a block or a decorated function took."""
        return Timer(self, "observe")


def locked(update: Callable[..., None]) -> Callable[..., None]:
    """The same update under the writer's lock, for builds where no GIL makes it one step.

    One wrapper for each signature: passing any arguments on would cost a fifth more.
    """

    def inc(self: BoundSeries, amount: float = 1.0, exemplar: object = None) -> None:  # noqa: ARG001 - for prometheus_client's sake
        with self.writer.lock:
            update(self, amount)

    def set_(self: BoundSeries, value: float) -> None:
        with self.writer.lock:
            update(self, value)

    def observe(self: BoundSeries, amount: float, exemplar: object = None) -> None:  # noqa: ARG001 - for prometheus_client's sake
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
