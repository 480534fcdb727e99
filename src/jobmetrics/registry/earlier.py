"""Histograms that were declared with other buckets before: their counts go into the newest declaration's buckets.

Only where one set of bounds is a subset of the other. Then the count, the sum and each bound that both have are exact.
At a bound that only the newest has, earlier observations count from the next bound that both have.
"""

from __future__ import annotations

from bisect import bisect_left

from jobmetrics.families import ERASED, HISTOGRAM, Family
from jobmetrics.registry.index import Placement, SeriesIndex
from jobmetrics.registry.slot_reading import Cells

Labels = tuple[str, ...]


class Earlier:
    """The earlier declarations of one index that are shown under the newest one.

    superseded: series of earlier declarations that are not shown.
    """

    def __init__(self, index: SeriesIndex) -> None:
        self._index = index
        self._buckets: dict[int, list[int]] = {}  # by earlier declaration: which of the newest's each of its own is in
        self._places: dict[tuple[int, Labels], list[tuple[int, Placement]]] = {}
        self.superseded = 0
        for number, family in index.families.items():
            newest = index.families[index.newest[family.name]]
            if newest is not family and _are_nested(family, newest):
                self._buckets[number] = [bisect_left(newest.buckets, bound) for bound in family.buckets]
        if len(index.families) > len(index.newest):
            self._look(index)

    def _look(self, index: SeriesIndex) -> None:
        for (number, values), place in index.series.items():
            newest = index.newest[index.families[number].name]
            if number in self._buckets:
                self._places.setdefault((newest, values), []).append((number, place))
            elif number != newest and index.families[number].mode != ERASED:
                self.superseded += 1

    def add(self, number: int, values: Labels, counts: list[float], cells: Cells) -> list[float]:
        """The cells of the newest declaration's series, with what was counted before it.

        The earliest comes first: a sum in a fixed order never falls by an ulp, also when one more is declared.
        """
        found = self._places.pop((number, values), ()) if self._places else ()
        if not found:
            return counts
        total = [0.0] * len(counts)
        for earlier, place in sorted(found):
            own = self._counted(earlier, values, place, cells).tolist()
            for bucket, count in zip(self._buckets[earlier], own, strict=False):
                total[bucket] += count
            total[-2] += own[-2]
            total[-1] += own[-1]
        return [before + now for before, now in zip(total, counts, strict=True)]

    def _counted(self, number: int, values: Labels, place: Placement, cells: Cells) -> Cells:
        counted = cells[place.first : place.first + place.width]
        erased = self._index.find_erased(self._index.families[number], values)
        return counted if erased is None else counted - cells[erased.first : erased.first + place.width]

    def rest(self) -> list[tuple[int, Labels]]:
        """Series that the newest declaration itself does not have: its number, and the label values."""
        return list(self._places)

    def first_cells(self, number: int, values: Labels) -> list[int]:
        """First cells of the earlier series that are shown in this one."""
        return [place.first for _, place in self._places.get((number, values), ())] if self._places else []


def _are_nested(earlier: Family, newest: Family) -> bool:
    if earlier.type != HISTOGRAM or newest.type != HISTOGRAM or earlier.labels != newest.labels:
        return False
    bounds, others = set(earlier.buckets), set(newest.buckets)
    return bounds <= others or bounds >= others
