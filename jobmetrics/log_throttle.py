"""Log lines that repeat at most once a minute."""

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

    There is no lock: a process that is forked while another thread holds one could never log again. Two threads that
    warn of one subject at the same instant may log it twice.

    Args:
        clock: returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._logged_at: dict[str, float] = {}

    def warning(self, subject: str, message: str, *arguments: object) -> bool:
        """Log a warning unless the subject had one in the last minute.

        Returns:
            Whether it was logged.
        """
        now = self._clock()
        if now - self._logged_at.get(subject, -LOG_INTERVAL) < LOG_INTERVAL:
            return False
        self._logged_at[subject] = now
        logger.warning(message, *arguments)
        return True
