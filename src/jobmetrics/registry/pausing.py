"""When to try again what failed: a directory that cannot be used must not cost every job a system call."""

from __future__ import annotations

from collections.abc import Callable

# What can fail, each with a pause of its own.
LOAD = "load"  # opening or making the index
LEASE = "lease"  # having a slot
INDEX = "index"  # appending to the index
GROWTH = "growth"  # having a larger slot

FIRST_PAUSE = 1.0  # seconds without a try after a failure; for LOAD doubled with each up to
LONGEST_PAUSE = 30.0


class Pauses:
    """The pauses of one process, by cause; no child inherits them. clock: seconds that never go back."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._known: dict[str, tuple[float, float]] = {}  # seconds, and when they are over

    def is_over(self, cause: str) -> bool:
        """Whether one may try."""
        known = self._known.get(cause)
        return known is None or self._clock() >= known[1]

    def failed(self, cause: str) -> None:
        """The try came to nothing."""
        seconds = FIRST_PAUSE
        if cause == LOAD and cause in self._known:
            seconds = min(LONGEST_PAUSE, self._known[cause][0] * 2)
        self._known[cause] = seconds, self._clock() + seconds

    def succeeded(self, cause: str) -> bool:
        """The try came to something. Returns whether the one before had failed."""
        return self._known.pop(cause, None) is not None

    def end(self) -> None:
        """Whatever failed may be tried at once."""
        self._known.clear()
