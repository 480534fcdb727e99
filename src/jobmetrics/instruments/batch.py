"""Several updates as one."""

from __future__ import annotations

from collections.abc import Callable

from jobmetrics.instruments.bound import BoundCounter, BoundGauge, BoundHistogram


class Batch:
    """Several updates that are applied together, at the end of a block; none of them if it raises.

    with Batch() as batch:
        batch.inc(ROWS.labels("a"), 3)
        batch.observe(SIZE.labels("a"), 12.5)
    """

    def __init__(self) -> None:
        self._updates: list[tuple[Callable[[float], None], float]] = []

    def inc(self, series: BoundCounter | BoundGauge, amount: float = 1.0) -> None:
        """Add to a counter or gauge."""
        self._updates.append((series.inc, amount))

    def set(self, series: BoundGauge, value: float) -> None:
        """Set a gauge."""
        self._updates.append((series.set, value))

    def observe(self, series: BoundHistogram, amount: float) -> None:
        """Count a value in a histogram."""
        self._updates.append((series.observe, amount))

    def apply(self) -> None:
        """Apply what was collected, in order."""
        updates, self._updates = self._updates, []
        for update, value in updates:
            update(value)

    def __enter__(self) -> Batch:  # noqa: PYI034 - Self is not in the standard library of Python 3.10
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None:
            self.apply()
        self._updates = []
