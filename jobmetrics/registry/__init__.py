"""The registry directory: forked workers record into memory-mapped slots, the exporter adds them up.

Other packages import the write side and the files' contents from here, and the read side from `registry.read`.
"""

from __future__ import annotations

from jobmetrics.registry.cells import (
    MAX_CLOCK_AHEAD,
    NOWHERE,
    UNBOUND,
    BoundSeries,
    Row,
    SeriesWriter,
    extreme,
    raise_to,
    set_at,
)
from jobmetrics.registry.directory import INDEX_NAME, Directory, SlotsHeld, prune, slot_name
from jobmetrics.registry.files import is_ready
from jobmetrics.registry.index import LOCK_WAIT, Placement, SeriesIndex, parse_index
from jobmetrics.registry.journal import Entry, Journal, owner_and_running, unended
from jobmetrics.registry.layout import ProcessIdentity, SlotHeader, execution_hash
from jobmetrics.registry.slots import pid_namespace
from jobmetrics.registry.write import current, fork_hooks, zeros
from jobmetrics.registry.write.current import refresh
from jobmetrics.registry.write.writer import Writer

__all__ = [
    "INDEX_NAME",
    "LOCK_WAIT",
    "MAX_CLOCK_AHEAD",
    "NOWHERE",
    "UNBOUND",
    "BoundSeries",
    "Directory",
    "Entry",
    "Journal",
    "Placement",
    "ProcessIdentity",
    "Row",
    "SeriesIndex",
    "SeriesWriter",
    "SlotHeader",
    "SlotsHeld",
    "Writer",
    "current",
    "execution_hash",
    "extreme",
    "fork_hooks",
    "is_ready",
    "owner_and_running",
    "parse_index",
    "pid_namespace",
    "prune",
    "raise_to",
    "refresh",
    "set_at",
    "slot_name",
    "unended",
    "zeros",
]
