"""Fixtures of the unit tests: each test begins as a process that has recorded nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as examples

from jobmetrics import runtime, settings
from jobmetrics.registry.write.writer import Writer
from jobmetrics.settings import Settings
from tests.unit.doubles import FakeClock, die

# No test fails because the machine is busy.
examples.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
examples.load_profile("unhurried")


@pytest.fixture(autouse=True)
def fresh_process() -> Iterator[None]:
    """Run the test with a new runtime, as in a process that has recorded nothing yet."""
    with runtime.replaced():
        yield


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def active_settings(registry_dir: Path) -> Settings:
    """Active settings that record into the test's directory and propagate errors."""
    return settings.configure(dir=registry_dir, propagate_errors=True)


@pytest.fixture
def writer(active_settings: Settings, clock: FakeClock) -> Iterator[Writer]:
    made = Writer(active_settings, clock)
    yield made
    die(made)
