"""The pytest fixture of the package. pytest loads it by its entry point, so tests import nothing."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture
def jobmetrics_registry() -> Iterator[str]:
    """Record into a temporary registry directory for one test, and yield its path.

    Read it with `jobmetrics.testing.read_sample`. Errors of jobmetrics are raised instead of counted.
    """
    from jobmetrics.testing import temporary_registry

    with temporary_registry() as directory:
        yield directory
