"""How often heavy repetitions repeat: as often as LONG_SECONDS has room for, without it in full."""

from __future__ import annotations

import os

import pytest

# What all of them take in full on two processors, about.
FULL_SECONDS = 3600.0

HEAVY = (pytest.mark.long, pytest.mark.timeout(FULL_SECONDS))


def heavy(moderate: int, full: int) -> int:
    """A heavy size: full, or as much less as LONG_SECONDS is less than all of them take."""
    share = min(1.0, float(os.environ.get("LONG_SECONDS") or FULL_SECONDS) / FULL_SECONDS)
    return round(moderate + (full - moderate) * share)


def sizes(name: str, moderate: int, full: int) -> pytest.MarkDecorator:
    """One test body at two sizes, as the argument `name`: moderate always, heavy with the long tests."""
    return pytest.mark.parametrize(
        name, [moderate, pytest.param(heavy(moderate, full), marks=HEAVY)], ids=["moderate", "heavy"]
    )
