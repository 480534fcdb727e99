"""One series as one process records it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobmetrics.families import Family
from jobmetrics.registry.memory import UNBOUND, Row

if TYPE_CHECKING:
    from jobmetrics.registry.writer import Writer


class BoundSeries:
    """One series as this process records it: its family, label values, and where its cells are."""

    __slots__ = ("__weakref__", "dropped", "family", "values", "where", "writer")

    def __init__(self, writer: Writer, family: Family, values: tuple[str, ...]) -> None:
        self.writer = writer
        self.family = family
        self.values = values
        self.where: tuple[Row, int] = UNBOUND
        self.dropped = False  # beyond the cap: recorded under __other__

    def leased(self, row: Row, first: int) -> None:
        """Called when the series gets cells in a slot, before anything of this process is in them."""
