"""Work that those who ask at the same time share."""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")


class Round(Generic[T]):
    """One piece of work and what was made of it. Only who holds the sharing lock touches it."""

    def __init__(self) -> None:
        self.done = False
        self.result: T | None = None
        self.error: Exception | None = None
        self.made: dict[Hashable, bytes] = {}


class Shared(Generic[T]):
    """Does `work` once for all who came while the time before was still under way.

    What somebody gets was always begun after he asked, never before: a scrape shows everything that was
    recorded before it. However many ask, each waits for two rounds at the most.
    """

    def __init__(self, work: Callable[[], T]) -> None:
        self._work = work
        self._entry = threading.Lock()  # held for moments: guards `_next`
        self._at_work = threading.Lock()  # held by who works
        self._next: Round[T] | None = None

    def get(self, key: Hashable, make: Callable[[T], bytes]) -> bytes:
        """What `make` makes of the work's result, made once for each key and round.

        Raises:
            Exception: whatever the work raised, to all who shared it.
        """
        with self._entry:
            mine = self._next = self._next or Round()
        with self._at_work:
            if not mine.done:
                with self._entry:
                    self._next = None  # who comes from here on gets the round after this one
                mine.done = True
                try:
                    mine.result = self._work()
                except Exception as error:  # noqa: BLE001 - raised below, to all
                    mine.error = error
            if mine.error is not None:
                raise mine.error
            if key not in mine.made:
                mine.made[key] = make(mine.result)  # type: ignore[arg-type]  # T itself may be None
            return mine.made[key]
