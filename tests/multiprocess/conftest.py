"""Which steps of an interruption are left to make test-all."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.multiprocess.interruption import AFTER

HERE = Path(__file__).parent


@pytest.hookimpl(tryfirst=True)  # before the marks choose
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """After a call is, but for writes through the mapping, before the next one, which make test stops at."""
    for item in items:
        given = item.callspec.params if hasattr(item, "callspec") else {}
        if given.get("when") == AFTER and item.path.is_relative_to(HERE):
            item.add_marker(pytest.mark.full)
