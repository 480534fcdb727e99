"""Where a command's log goes: one line an event, on stderr."""

from __future__ import annotations

import logging

FORMAT = "%(asctime)s %(levelname)s %(message)s"


def configure(level: str) -> None:
    """Write what jobmetrics and its HTTP server log to stderr.

    Other libraries are left silent: what they say about a broker that is down, jobmetrics says once a minute.
    """
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter(FORMAT))
    for name in ("jobmetrics", "waitress"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.propagate = False
    logging.getLogger("jobmetrics").setLevel(level.upper())
    logging.getLogger().addHandler(logging.NullHandler())  # else Python prints warnings that nobody handles
