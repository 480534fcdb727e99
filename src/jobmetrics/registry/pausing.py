"""When to try again what failed: a directory that cannot be used must not cost every job a system call."""

from __future__ import annotations

from collections.abc import Callable

FIRST_PAUSE = 0.5  # seconds without a try after a failure; doubled with each up to
LONGEST_PAUSE = 30.0


class Pause:
    """clock: seconds that never go back."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._seconds = 0.0
        self._until = 0.0

    def is_over(self) -> bool:
        """Whether one may try."""
        return not self._seconds or self._clock() >= self._until

    def failed(self) -> None:
        """The try came to nothing."""
        self._seconds = min(LONGEST_PAUSE, self._seconds * 2 or FIRST_PAUSE)
        self._until = self._clock() + self._seconds

    def succeeded(self) -> bool:
        """The try came to something. Returns whether the one before had failed."""
        before, self._seconds = self._seconds, 0.0
        return bool(before)
