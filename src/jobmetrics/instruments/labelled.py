"""A family with its series by label values."""

from __future__ import annotations

import dataclasses
from typing import Generic, TypeVar

from jobmetrics import settings
from jobmetrics.families import HISTOGRAM, Family
from jobmetrics.registry import current
from jobmetrics.registry.writer import BoundSeries, Writer

Bound = TypeVar("Bound", bound=BoundSeries)

MAX_LABEL_VALUE = 256  # characters


def label_value(value: object) -> str:
    """A label value as text, cut to what a label may hold."""
    text = value if type(value) is str else str(value)
    return text if len(text) <= MAX_LABEL_VALUE else text[: MAX_LABEL_VALUE - 1] + "…"


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
