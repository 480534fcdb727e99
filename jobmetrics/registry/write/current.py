"""The process's writer, made from the active settings at the first recording."""

from __future__ import annotations

import logging
from collections.abc import Callable

from jobmetrics import guard, runtime, settings
from jobmetrics.registry.write import zeros
from jobmetrics.registry.write.writer import Writer

logger = logging.getLogger("jobmetrics")

# Given to each writer. The recorder, a layer above, sets it at import: it is code, the same in every runtime.
show_dropped: Callable[[], None] | None = None


class Current:
    """The process's writer and the settings that it was made from."""

    def __init__(self) -> None:
        self.writer: Writer | None = None
        self.made_from: settings.Settings | None = None


def reported_settings() -> settings.Settings:
    """Return the active settings. Errors in the environment or the file are logged and counted once.

    A wrong setting is ignored: it prevents neither the start of the worker nor recording.
    """
    active_settings = settings.active()
    findings = settings.take_findings()
    for error in findings.errors:
        guard.count("settings")
        logger.error("jobmetrics: ignored, recording goes on without it: %s", error)
    if findings.unknown:
        logger.warning("jobmetrics: %s", findings.unknown_line())
    if findings.held:
        logger.info("jobmetrics: another user holds %s; recording goes to %s", findings.held, active_settings.dir)
    return active_settings


def writer() -> Writer:
    """Return the process's writer, which all its instruments share."""
    current = runtime.state(Current)
    if current.writer is None or current.made_from is not settings.peek():
        with settings.making():
            active = reported_settings()
            if current.writer is None or current.made_from is not active:
                if current.writer is not None:
                    current.writer.shows_zeros = False
                    zeros.request_all()
                current.writer, current.made_from = Writer(active), active
                current.writer.shows_zeros = True
                current.writer.show_dropped = show_dropped
    return current.writer


@guard.guarded("refresh")
def refresh() -> None:
    """Follow the registry directory if it was removed or replaced.

    Jobs, `labels()`, timed blocks and metrics without a definition do this themselves. Updates of a series that is kept
    and updated in a loop do not, since they read no clock. Call this in such a loop. It checks the directory at most
    once a second; the other calls cost less than a microsecond.

    Example:
        >>> from jobmetrics import Counter, refresh
        >>> lines = Counter("shop_lines_read", "Lines read.", ["file"]).labels("orders")
        >>> for _ in range(1000):
        ...     lines.inc()
        ...     refresh()
    """
    writer().look()


def show_zeros() -> None:
    """Show a new definition at once if this process records already; otherwise it waits for the first recording."""
    current = runtime.state(Current)
    if current.writer is not None and current.made_from is settings.peek():
        current.writer.show_zeros()
