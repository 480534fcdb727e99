"""How the benchmarks measure: both sides in turns in one run, then the medians, their ratio and their spread."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass

NO_BUDGET = float("inf")


@dataclass(frozen=True)
class Row:
    """One line of the table.

    ours, peer: medians in `unit`. budget: the upper bound of ours / peer; NO_BUDGET for a row without one.
    """

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
        """The measured value as a share of its budget."""
        return self.ours / self.absolute if self.absolute is not None else self.ratio / self.budget


def interleaved(ours: Callable[[], float], peer: Callable[[], float], rounds: int) -> tuple[list[float], list[float]]:
    """Run both sides in each round and return their figures. The side that runs first alternates."""
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
