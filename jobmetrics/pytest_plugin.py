"""The pytest fixture that comes with the package. pytest finds it by its entry point; nothing is to be imported."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture
def jobmetrics_registry() -> Iterator[str]:
    """Record into a registry directory of the test's own, and give its path.

    Read it with `jobmetrics.testing.read_sample`. Errors of jobmetrics surface instead of being counted.
    """
    from jobmetrics.testing import temporary_registry

    with temporary_registry() as directory:
        yield directory
