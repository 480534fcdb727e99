"""The log of a command: one line for each event on stderr, as text or JSON, with names that are safe for a terminal."""

from __future__ import annotations

import json
import logging
from datetime import datetime, timezone

HUMAN, JSON = "human", "json"
FORMATS = (HUMAN, JSON)

_HUMAN = "%(asctime)s %(levelname)s %(message)s"


def printable(text: str) -> str:
    """Escape the characters that a terminal may interpret instead of showing.

    Any producer chooses the names of jobs and queues. They may hold control sequences or marks that change the text
    direction.
    """
    if text.isprintable():
        return text
    return "".join(
        char if char.isprintable() else char.encode("unicode_escape", "surrogatepass").decode("ascii") for char in text
    )


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (RFC 3339, UTC), level, logger, message, and the traceback as error."""

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
    """One line with control characters escaped, followed by the traceback if there is one."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        return printable(super().formatMessage(record))


def configure(level: str, form: str = HUMAN) -> None:
    """Log messages of jobmetrics and its HTTP server to stderr.

    Other libraries stay silent. jobmetrics itself reports a broker that is down, once a minute.

    Args:
        level: Name of the lowest level that is logged.
        form: HUMAN or JSON.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter() if form == JSON else HumanFormatter(_HUMAN))
    for name in ("jobmetrics", "uvicorn"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.propagate = False
    logging.getLogger("jobmetrics").setLevel(level.upper())
    logging.getLogger().addHandler(logging.NullHandler())  # else Python prints the warnings of other libraries
