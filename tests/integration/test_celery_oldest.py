"""The truth table of every pool on the oldest Celery that is supported; its other tables on it are nox's."""

from __future__ import annotations

import pytest

from tests.integration.environments import assert_tests_pass_on

POOLS = ("prefork", "threads", "solo", "gevent")


@pytest.mark.timeout(1200)  # it runs whole files
def test_the_truth_table_holds_on_the_oldest_celery() -> None:
    files = (f"tests/integration/test_celery_{pool}.py" for pool in POOLS)
    assert_tests_pass_on("celery", "5.3", ("gevent", "redis>=4.5.2"), *files)
