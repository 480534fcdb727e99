"""Which tests of real workers run only in make test-all: pools, worker classes and brokers beyond the usual ones."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent

# The values that `make test` runs: a test with another value of the parameter is marked full.
USUAL = {"pool": "prefork", "worker_class": "jobmetrics.rq.Worker", "broker": "redis"}
RABBITMQ = frozenset({"rabbitmq_url", "_shared_rabbitmq"})


@pytest.hookimpl(tryfirst=True)  # before marks select tests
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and item.path.is_relative_to(HERE):
            given = item.callspec.params if hasattr(item, "callspec") else {}
            unusual = any(given.get(name, usual) != usual for name, usual in USUAL.items())
            if unusual or RABBITMQ & set(item.fixturenames):
                item.add_marker(pytest.mark.full)
