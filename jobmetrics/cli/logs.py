"""Where a command's log goes: one line an event, on stderr, for people or as JSON."""

from __future__ import annotations

import json
import logging
from datetime import datetime, timezone

from jobmetrics.cli.printable import printable

HUMAN, JSON = "human", "json"
FORMATS = (HUMAN, JSON)

_HUMAN = "%(asctime)s %(levelname)s %(message)s"


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (RFC 3339, UTC), level, logger, message, and error with its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        found = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            found["error"] = self.formatException(record.exc_info)
        return json.dumps(found, ensure_ascii=True)


class HumanFormatter(logging.Formatter):
    """One line, without control characters from names, and below it the traceback if there is one."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return printable(super().formatMessage(record))


def configure(level: str, form: str = HUMAN) -> None:
    """Write what jobmetrics and its HTTP server log to stderr.

    Other libraries are left silent: what they say about a broker that is down, jobmetrics says once a minute.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if form == JSON else HumanFormatter(_HUMAN))
    for name in ("jobmetrics", "uvicorn"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.propagate = False
    logging.getLogger("jobmetrics").setLevel(level.upper())
    logging.getLogger().addHandler(logging.NullHandler())  # else Python prints warnings that nobody handles
