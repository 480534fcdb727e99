"""Tests of every row of a table: one test, with a message that names each wrong row."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import TypeVar

T = TypeVar("T")


def each_row(rows: Iterable[T], name: Callable[[T], str] = str) -> Callable[[Callable[[T], None]], Callable[[], None]]:
    """Call the decorated test with each row, and fail with the names of the failed rows.

    Args:
        rows: The arguments of the test, one row after another; at least one.
        name: The name of a row in the message.
    """
    all_rows = list(rows)

    def decorate(test: Callable[[T], None]) -> Callable[[], None]:
        @functools.wraps(test)
        def test_all() -> None:
            assert all_rows
            wrong = {}
            for row in all_rows:
                try:
                    test(row)
                except Exception as error:  # noqa: BLE001 - raised again with its row
                    wrong[name(row)] = error
            shown = "\n".join(f"{row}: {type(error).__name__}: {error}" for row, error in wrong.items())
            if wrong:
                raise AssertionError(f"{len(wrong)} of {len(all_rows)} rows\n{shown}") from next(iter(wrong.values()))

        del test_all.__wrapped__  # otherwise pytest takes its argument for a fixture
        return test_all

    return decorate
