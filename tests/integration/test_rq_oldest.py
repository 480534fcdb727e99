"""RQ's truth table, in every worker class, and its other tables on the oldest RQ that is supported."""

from __future__ import annotations

import pytest

from tests.integration.environments import assert_tests_pass_on


@pytest.mark.timeout(1200)  # it runs whole files
def test_the_tables_hold_on_the_oldest_rq() -> None:
    assert_tests_pass_on(
        "rq",
        "1.16",
        ("fakeredis",),
        "tests/unit/rq",
        "tests/integration/test_rq_truth.py",
        "tests/integration/test_rq_classes.py",
    )
