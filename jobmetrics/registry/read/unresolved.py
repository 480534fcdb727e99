"""Finds executions that were killed and have no end in any journal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from jobmetrics.registry import layout

SHOWN_FOR = 86400.0  # seconds since its start for which an unresolved execution is shown

# State, execution hash, start, end and series, each as an array with one element for each used entry.
JournalColumns = NDArray[np.uint64]
_DEAD = 0x100  # beside the codes on disk: running under an owner that died


def read_journal(data: bytes | memoryview, header: layout.SlotHeader, lease: int | None) -> JournalColumns | None:
    """Return a copy of the used entries of a slot, with codes as states; None for an empty journal.

    Args:
        data: The slot's bytes.
        header: Its header.
        lease: That of its living owner, also while the owner record is being written; None for a free slot.
    """
    columns = np.frombuffer(data, "<u8", layout.JOURNAL_COLUMNS * header.journal, layout.JOURNAL_OFFSET)
    columns = columns.reshape(layout.JOURNAL_COLUMNS, header.journal)
    used = columns[0].nonzero()[0]
    if not len(used):
        return None
    found: JournalColumns = columns.take(used, 1)
    states = found[0]
    alive = states == layout.pack_state(lease or 0, layout.RUNNING)
    states &= 0xFF
    states[(states == layout.RUNNING) & ~alive] = _DEAD
    return found


def unresolved(journals: Sequence[JournalColumns], now: float) -> Counter[int]:
    """Count unresolved executions by the first cell of their jobs_active series.

    An execution is resolved by its end in any journal, and by a later start of the same id.

    Args:
        journals: Of all slots, as `read_journal` returns them.
        now: Epoch seconds.
    """
    if not journals:
        return Counter()
    states, executions, starts, _, series = np.concatenate(journals, 1)
    times = starts.view(np.float64)
    dead = (states == _DEAD) & (times > now - SHOWN_FOR) & (series != layout.NO_SERIES)
    if not dead.any():
        return Counter()
    other = np.isin(executions, executions[dead])
    latest: dict[int, float] = {}
    resolved = set()
    for state, execution, start in zip(
        states[other].tolist(), executions[other].tolist(), times[other].tolist(), strict=True
    ):
        latest[execution] = max(latest.get(execution, 0.0), start)
        if state != _DEAD:
            resolved.add((execution, start))
    found = {
        (execution, start): first
        for execution, start, first in zip(
            executions[dead].tolist(), times[dead].tolist(), series[dead].tolist(), strict=True
        )
        if (execution, start) not in resolved and start == latest[execution]
    }  # by execution and start: a copy of a slot has the same ones
    return Counter(found.values())
