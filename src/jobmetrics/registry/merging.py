"""How the values of one series in two rows become one, by merge mode.

Every step here is one that no other thread of a GIL build can get into: no call, no loop around a store.
"""

from __future__ import annotations

from jobmetrics.families import LIVE_SUM, MAX, MIN, MOST_RECENT, SUM


def raise_to(cells: memoryview[float], i: int, value: float) -> None:
    """A max gauge: cell i tells whether it was ever set, i + 1 is the value."""
    if cells[i] == 0.0 or value > cells[i + 1]:
        cells[i + 1] = value
        cells[i] = 1.0


def lower_to(cells: memoryview[float], i: int, value: float) -> None:
    """A min gauge, laid out as a max gauge is."""
    if cells[i] == 0.0 or value < cells[i + 1]:
        cells[i + 1] = value
        cells[i] = 1.0


def set_at(cells: memoryview[float], i: int, value: float, at: float) -> None:
    """A most recent gauge: cell i is when it was set (epoch seconds, 0 for never), i + 1 the value."""
    if at >= cells[i]:
        cells[i + 1] = value
        cells[i] = at


def merge(mode: str, width: int, source: memoryview[float], i: int, target: memoryview[float], j: int) -> None:
    """Add one series' cells at source[i] to those at target[j]."""
    if mode in (SUM, LIVE_SUM):
        for step in range(width):
            target[j + step] += source[i + step]
    elif source[i] == 0.0:
        return
    elif mode == MAX:
        raise_to(target, j, source[i + 1])
    elif mode == MIN:
        lower_to(target, j, source[i + 1])
    elif mode == MOST_RECENT:
        set_at(target, j, source[i + 1], source[i])
