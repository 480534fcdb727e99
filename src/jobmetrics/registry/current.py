"""The writer of this process: made from the settings in force when something is first recorded."""

from __future__ import annotations

import logging

from jobmetrics import settings
from jobmetrics.errors import SettingsError
from jobmetrics.registry.writer import Writer

logger = logging.getLogger("jobmetrics")

_writer: Writer | None = None
_made_from: settings.Settings | None = None


def settings_or_off() -> settings.Settings:
    """The settings in force; with a bad environment or file, defaults with recording off, and one log line.

    Metrics never keep a worker from starting.
    """
    try:
        return settings.in_force()
    except SettingsError as error:
        off = settings.Settings(enabled=False)
        logger.error("jobmetrics: recording is off: %s", error)  # noqa: TRY400 - one clear line, no traceback
        settings.use(off)
        return off


def writer() -> Writer:
    """This process's writer, the same for all its instruments."""
    global _writer, _made_from
    if _writer is None or _made_from is not settings.peek():
        with settings.making():
            in_force = settings_or_off()
            if _writer is None or _made_from is not in_force:
                _writer, _made_from = Writer(in_force), in_force
    return _writer
