"""Which series have not changed for long: they are hidden until they change again."""

from __future__ import annotations

import numpy as np

from jobmetrics.families import ERASED, JOURNAL, LIVE_SUM
from jobmetrics.registry.index import SeriesIndex
from jobmetrics.registry.slot_reading import Cells


class Staleness:
    """Watches the totals of one generation. Live gauges are never stale: theirs is now.

    hide_after: seconds without a change after which a series is stale.
    """

    def __init__(self, hide_after: float) -> None:
        self._hide_after = hide_after
        self._last: Cells = np.zeros(0)
        self._changed_at: Cells = np.zeros(0)

    def forget(self) -> None:
        """A new generation: all begin anew."""
        self._last = self._changed_at = np.zeros(0)

    def look(self, index: SeriesIndex, total: Cells, now: float) -> frozenset[int]:
        """Take this reading into account; the first cells of the series that are stale by now."""
        known = len(self._last)
        changed_at = np.full(len(total), now)
        unchanged = (total[:known] == self._last) | (np.isnan(total[:known]) & np.isnan(self._last))
        changed_at[:known][unchanged] = self._changed_at[unchanged]
        self._last, self._changed_at = total.copy(), changed_at
        return frozenset(
            place.first
            for (number, _), place in index.series.items()
            if index.families[number].mode not in (LIVE_SUM, JOURNAL, ERASED)
            and now - changed_at[place.first : place.first + place.width].max() > self._hide_after
        )
