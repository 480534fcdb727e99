"""Log lines that repeat at most once a minute."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

LOG_INTERVAL = 60.0  # seconds between two lines about the same thing

logger = logging.getLogger("jobmetrics")


class Sparingly:
    """Writes to the log of jobmetrics, at most one line a minute about each subject. clock: seconds."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._written_at: dict[str, float] = {}

    def warning(self, subject: str, message: str, *arguments: object) -> bool:
        """Log a warning unless there was one about the subject in the last minute; whether it was logged."""
        with self._lock:
            now = self._clock()
            if now - self._written_at.get(subject, -LOG_INTERVAL) < LOG_INTERVAL:
                return False
            self._written_at[subject] = now
        logger.warning(message, *arguments)
        return True
