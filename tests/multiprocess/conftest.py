"""Which steps of an interruption run only in make test-all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.multiprocess.interruption import AFTER

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before marks select tests
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark kills after each call `full`: they differ from kills before the next call only in writes to mapped files."""
    for item in items:
        given = item.callspec.params if hasattr(item, "callspec") else {}
        if given.get("when") == AFTER and item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.full)
