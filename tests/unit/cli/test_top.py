"""How the live view shows durations."""

from __future__ import annotations

import pytest

from jobmetrics.cli.top import duration


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, "-"), (0.0, "0ms"), (0.0999, "100ms"), (0.9994, "999ms"), (0.9996, "1.0s"), (61.0, "61.0s"),
        (120.0, "2.0m"), (7200.0, "2.0h"), (864_000.0, "10d"),
    ],
)  # fmt: skip
def test_durations_take_five_characters(seconds: float | None, shown: str) -> None:
    assert duration(seconds) == shown
