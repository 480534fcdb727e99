"""What a reading of the directory says of one series, as plain data."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sample:
    """One series. value: of a counter or gauge; buckets: a histogram's counts, not cumulated, +Inf last; sum:
    of its observations."""

    values: tuple[str, ...]
    value: float = 0.0
    buckets: tuple[float, ...] = ()
    sum: float = 0.0


@dataclass(frozen=True, slots=True)
class Active:
    """What runs of one jobs_active series: how many, and the earliest start (epoch seconds)."""

    values: tuple[str, ...]
    count: int
    oldest: float | None
