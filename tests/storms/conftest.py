"""The seed of each storm."""

from __future__ import annotations

import os
import random

import pytest


@pytest.fixture
def chance() -> random.Random:
    """The source of all randomness of a storm. Its seed is printed, for STORM_SEED."""
    seed = int(os.environ.get("STORM_SEED") or random.SystemRandom().randrange(2**32))
    print(f"STORM_SEED={seed}")
    return random.Random(seed)
