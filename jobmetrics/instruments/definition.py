"""Definitions of metrics: names, labels and buckets by Prometheus's rules, one definition for each name."""

from __future__ import annotations

import functools
import re
import weakref
from collections.abc import Sequence
from typing import Any, Generic, TypeVar

from jobmetrics import families, runtime, settings
from jobmetrics.errors import InstrumentError, SettingsError
from jobmetrics.families import COUNTER, HISTOGRAM, Family
from jobmetrics.registry import UNBOUND, BoundSeries, Writer, current
from jobmetrics.settings import Settings

MAX_DOCUMENTATION = 1024  # characters; longer texts are cut
# Strings, not compiled patterns: re compiles and caches them at the first definition.
_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*\Z"
_LABEL_NAME = r"[a-zA-Z_][a-zA-Z0-9_]*\Z"
GAUGE_MODES = {
    "livesum": families.LIVE_SUM,
    "sum": families.SUM,
    "max": families.MAX,
    "min": families.MIN,
    "mostrecent": families.MOST_RECENT,
}


class Definitions:
    """Families that this process declared, by each of their names in the exposition."""

    def __init__(self) -> None:
        self.declared: dict[str, Family] = {}


def declare(family: Family) -> None:
    """Declare a family. Refuses a second, different definition in this process, and names of another metric's samples.

    Raises:
        InstrumentError: one line that names both metrics and a solution.
    """
    declared = runtime.state(Definitions).declared
    for name in family.exposed_names:
        known = declared.setdefault(name, family)
        if known.name != family.name:
            raise InstrumentError(
                f"{family.name} and {known.name} would both be shown as {name}: "
                f"take another name for one of them, or namespace='myapp'"
            )
        if known._replace(help=family.help) != family:
            raise InstrumentError(
                f"{family.name} is already defined in this process with a different type, labels, mode or buckets"
            )


def declared(name: str) -> Family | None:
    """Return the family that this process declared under this name, if any."""
    return runtime.state(Definitions).declared.get(name)


def define(
    type_: str,
    name: object,
    documentation: str,
    labels: tuple[str, ...],
    namespace: str = "",
    subsystem: str = "",
    unit: str = "",
    *,
    mode: str = families.SUM,
    buckets: Sequence[float] = (),
) -> Family:
    """Return a user's family, checked by Prometheus's rules.

    Raises:
        InstrumentError: one line with the invalid value and what is allowed.
    """
    full = "_".join(filter(None, (namespace, subsystem, name))) if isinstance(name, str) else ""
    base = full[: -len("_total")] if type_ == COUNTER and full.endswith("_total") else full
    if not name or not base:
        raise InstrumentError(
            f"{name!r} is not a valid metric name: it takes a string that is not empty, such as orders"
        )
    if unit and not base.endswith("_" + unit):
        base = f"{base}_{unit}"
    full = base + "_total" if type_ == COUNTER else base
    limits = _limits()
    if not re.match(_NAME, full) or len(full) > limits.max_name_length:
        raise InstrumentError(
            f"{full!r} is not a valid metric name: it takes at most {limits.max_name_length} letters, digits, _ and :, "
            "not starting with a digit"
        )
    _check_labels(full, type_, labels, limits)
    bounds: tuple[float, ...] = ()
    if type_ == HISTOGRAM:
        try:
            bounds = settings.parse("buckets", {full: tuple(map(_bound, buckets))}, shown_as="buckets")[full]
        except SettingsError as error:
            raise InstrumentError(str(error)) from None
    help_text = str(documentation)[:MAX_DOCUMENTATION]
    family = Family(full, type_, help_text, labels, mode, bounds, families.RECORDED, unit)
    _check_own_names(family)
    return family


def _bound(value: object) -> object:
    """Return a bucket's bound as a plain float, also for numpy's numbers; any other value unchanged, to be refused."""
    try:
        return value if isinstance(value, str) else float(value)  # type: ignore[arg-type]  # the error is handled below
    except (TypeError, ValueError, OverflowError):
        return value


@functools.cache
def _own_names() -> dict[str, str]:
    """Return the built-in metrics by each of their names in the exposition."""
    return {name: own.name for own in families.BUILT_IN for name in own.exposed_names}


def _check_own_names(family: Family) -> None:
    for name in family.exposed_names:
        own = _own_names().get(name)
        if own is not None:
            raise InstrumentError(
                f"{family.name!r} is not allowed: {own}, a metric of jobmetrics itself, uses the name {name}; "
                f"take another name, or namespace='myapp'"
            )


def _limits() -> Settings:
    """Return the active settings, or those of the environment without making them active.

    Errors in the environment are reported when recording begins, not when a metric is defined.
    """
    return settings.peek() or settings.read()[0]


def _check_labels(name: str, type_: str, labels: tuple[str, ...], limits: Settings) -> None:
    if len(labels) > limits.max_labels or len(set(labels)) != len(labels):
        raise InstrumentError(
            f"{name} takes at most {limits.max_labels} labels, each once; it was given {', '.join(map(repr, labels))}"
        )
    for label in labels:
        if not re.match(_LABEL_NAME, label) or label.startswith("__") or len(label) > limits.max_label_name_length:
            raise InstrumentError(
                f"{label!r} is not a valid label name for {name}: it takes at most {limits.max_label_name_length} "
                "letters, digits and _, not starting with a digit or __"
            )
        if label == "le" and type_ == HISTOGRAM:
            raise InstrumentError(f"{name} may not have the label 'le': a histogram has its own")


Bound = TypeVar("Bound", bound=BoundSeries)


def label_value(value: object) -> str:
    """Return a label value as a string, cut to the length that the active settings allow."""
    text = value if type(value) is str else str(value)
    limit = (settings.peek() or settings.Settings).max_label_value_length
    return text if len(text) <= limit else text[: limit - 1] + "…"


# Families that record into the directory of the active settings. Module-level, not in the runtime: user code holds them
# longer than a runtime lives.
_living: weakref.WeakSet[Labelled[Any]] = weakref.WeakSet()


class Labelled(Generic[Bound]):
    """A family with its bound series by label values."""

    def __init__(self, bound: type[Bound], family: Family, writer: Writer | None = None) -> None:
        self._bound = bound
        self.family = family
        self._writer = writer
        self._children: dict[tuple[str, ...], Bound] = {}
        self._misses = 0  # series requested since the last scan that evicted nothing
        if writer is None:
            _living.add(self)

    def at(self, values: tuple[str, ...]) -> Bound:
        """Return the series with these label values: strings, in the family's order.

        Series beyond the directory's cap are not kept, so that memory stays bounded.
        """
        child = self._children.get(values)
        if child is not None and not child.dropped:
            return child
        return self._new(values)

    def _new(self, values: tuple[str, ...]) -> Bound:
        writer = self._writer or current.writer()
        if self.family.type == HISTOGRAM and not self._children:
            bounds = settings.buckets_for(self.family.name, writer.buckets) or self.family.buckets
            self.family = self.family._replace(buckets=bounds)
        child = self._bound(writer, self.family, values)
        if len(self._children) >= writer.max_series:
            self._drop_overflowing()
        if len(self._children) < writer.max_series:
            self._children[values] = child
        return child

    def _drop_overflowing(self) -> None:
        """Evict overflow series; after a scan that evicts nothing, skip scanning for len(children) misses."""
        if 0 < self._misses < len(self._children):
            self._misses += 1
            return
        before = len(self._children)
        for values, child in self._children.copy().items():  # one step, since other threads add series meanwhile
            if child.dropped:
                self._children.pop(values, None)
        self._misses = int(len(self._children) == before)


def defined(name: str) -> Labelled[Any] | None:
    """Return the family of this name that user code has defined and still holds, if any."""
    return next((labelled for labelled in list(_living) if labelled.family.name == name), None)


def follow(writer: Writer) -> None:
    """Make every series record through another writer, also series that user code holds: for tests."""
    for labelled in list(_living):
        for child in labelled._children.values():
            child.writer, child.where, child.dropped = writer, UNBOUND, False
