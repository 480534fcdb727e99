"""The size of heavy repetitions: full, or reduced to fit into LONG_SECONDS."""

from __future__ import annotations

import os

import pytest

# The approximate time of all full sizes on two processors.
FULL_SECONDS = 3600.0

HEAVY = (pytest.mark.long, pytest.mark.timeout(FULL_SECONDS))


def heavy(moderate: int, full: int) -> int:
    """A heavy size: full, or reduced as LONG_SECONDS is to FULL_SECONDS."""
    share = min(1.0, float(os.environ.get("LONG_SECONDS") or FULL_SECONDS) / FULL_SECONDS)
    return round(moderate + (full - moderate) * share)


def sizes(name: str, moderate: int, full: int) -> pytest.MarkDecorator:
    """Run a test at two sizes, as the argument `name`: moderate always, heavy with the long tests."""
    return pytest.mark.parametrize(
        name, [moderate, pytest.param(heavy(moderate, full), marks=HEAVY)], ids=["moderate", "heavy"]
    )
