"""Repeated log messages, at most one a minute."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import final

LOG_INTERVAL = 60.0  # seconds between two lines about one subject

logger = logging.getLogger("jobmetrics")


@final
class ThrottledLog:
    """Logs warnings of jobmetrics, at most one a minute about each subject.

    It has no lock, because a lock that another thread held at a fork is never released in the child. Two threads may
    therefore log the same subject twice.

    Args:
        clock: Returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._logged_at: dict[str, float] = {}

    def warning(self, subject: str, message: str, *arguments: object) -> bool:
        """Log a warning unless one was logged for the subject in the last minute.

        Args:
            subject: The key that limits repetition.
            message: The format string.
            arguments: Its arguments.

        Returns:
            Whether the warning was logged.
        """
        now = self._clock()
        if now - self._logged_at.get(subject, -LOG_INTERVAL) < LOG_INTERVAL:
            return False
        self._logged_at[subject] = now
        logger.warning(message, *arguments)
        return True
