"""A family with its series by label values."""

from __future__ import annotations

import weakref
from typing import Any, Generic, TypeVar

from jobmetrics import settings
from jobmetrics.families import HISTOGRAM, Family
from jobmetrics.registry import current
from jobmetrics.registry.memory import UNBOUND
from jobmetrics.registry.series import BoundSeries
from jobmetrics.registry.writer import Writer

Bound = TypeVar("Bound", bound=BoundSeries)


def label_value(value: object) -> str:
    """A label value as text, cut to what a label may hold by the settings in force."""
    text = value if type(value) is str else str(value)
    limit = (settings.peek() or settings.Settings).max_label_value_length
    return text if len(text) <= limit else text[: limit - 1] + "…"


# Families that record into the directory of the settings in force, whichever that was at a series' first use.
_of_settings: weakref.WeakSet[Labelled[Any]] = weakref.WeakSet()


class Labelled(Generic[Bound]):
    """A family with its bound series by label values, as one process records them."""

    def __init__(self, bound: type[Bound], family: Family, writer: Writer | None = None) -> None:
        self._bound = bound
        self.family = family
        self._writer = writer
        self._children: dict[tuple[str, ...], Bound] = {}
        self._misses = 0  # series asked for since all were looked through in vain
        if writer is None:
            _of_settings.add(self)

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
            self.family = self.family._replace(buckets=bounds)
        child = self._bound(writer, self.family, values)
        if len(self._children) >= writer.max_series:
            self._drop_overflowing()
        if len(self._children) < writer.max_series:
            self._children[values] = child
        return child

    def _drop_overflowing(self) -> None:
        """Make room; what was looked through in vain is not looked through again before as many were asked for."""
        if 0 < self._misses < len(self._children):
            self._misses += 1
            return
        before = len(self._children)
        for values, child in self._children.copy().items():  # in one step: other threads add series meanwhile
            if child.dropped:
                self._children.pop(values, None)
        self._misses = int(len(self._children) == before)


def defined(name: str) -> Labelled[Any] | None:
    """The family of this name that the code has defined and still holds, if any."""
    return next((labelled for labelled in list(_of_settings) if labelled.family.name == name), None)


def follow(writer: Writer) -> None:
    """Let every series record through another writer from now on, also those that somebody holds: for tests."""
    for labelled in list(_of_settings):
        for child in labelled._children.values():
            child.writer, child.where, child.dropped = writer, UNBOUND, False
