"""How the benchmarks measure: both sides interleaved in one run, medians, ratios, and the spread beside them."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

NO_BUDGET = float("inf")


@dataclass(frozen=True)
class Row:
    """One line of the table. ours and peer: medians in `unit`; budget: the most that ours / peer may be, NO_BUDGET
    where the figures are there to be known."""

    what: str
    ours: float
    peer: float
    unit: str
    budget: float
    spread: str = ""
    absolute: float | None = None  # the upper bound for ours, in `unit`, if the budget is not a ratio
    profile: str = ""  # where the time goes, shown when the budget is missed

    @property
    def ratio(self) -> float:
        return self.ours / self.peer if self.peer else float("nan")

    @property
    def kept(self) -> bool:
        return self.share <= 1.0

    @property
    def share(self) -> float:
        """What was measured, of what the budget allows."""
        return self.ours / self.absolute if self.absolute is not None else self.ratio / self.budget


def interleaved(ours: Callable[[], float], peer: Callable[[], float], rounds: int) -> tuple[list[float], list[float]]:
    """Both sides' figures from a number of rounds; the sides run in turns, and the first one alternates."""
    found: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds):
        sides = ((0, ours), (1, peer)) if number % 2 == 0 else ((1, peer), (0, ours))
        for side, measure in sides:
            found[side].append(measure())
    return found


def spread(figures: Sequence[float]) -> str:
    """The quartiles, as a share of the median."""
    low, middle, high = statistics.quantiles(figures, n=4)
    return f"{(low / middle - 1):+.0%}..{(high / middle - 1):+.0%}" if middle else ""


def compare(
    what: str,
    unit: str,
    budget: float,
    figures: tuple[list[float], list[float]],
    absolute: float | None = None,
    profile: str = "",
) -> Row:
    """A row from both sides' figures."""
    ours, peer = figures
    return Row(
        what,
        statistics.median(ours),
        statistics.median(peer),
        unit,
        budget,
        f"{spread(ours)} / {spread(peer)}",
        absolute,
        profile,
    )
