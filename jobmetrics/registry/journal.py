"""The journal in a slot: the executions that its owner runs, and those that ended recently.

It ensures that an execution is counted once: a process that reports the death of another one first looks in all
journals for the end of the execution.
"""

# No `from __future__ import annotations`: NamedTuple would compile each string at import.
import os
import struct
import time
from collections import deque
from collections.abc import Iterator
from math import inf, nan
from typing import NamedTuple

from jobmetrics.errors import Damaged, RegistryError
from jobmetrics.registry import layout
from jobmetrics.registry.directory import Directory, slot_name
from jobmetrics.registry.files import closing, is_ready

# Seconds for which an earlier owner's entry is kept where there is room: a job system may report a dead process up to
# ten seconds later.
KEEP = 120.0

_pack_job_id, _JOB_ID_SIZE = layout.JOB_ID.pack_into, layout.JOB_ID.size

_UNSIGNED, _FLOAT = struct.Struct("<Q"), struct.Struct("<d")


class Entry(NamedTuple):
    """One execution in a journal.

    start, end: epoch seconds (end 0.0 while it runs, start NaN when damaged); series: first cell of its jobs_active
    series; running: the slot's present owner runs it; lost: its owner died before its end; counted: it is lost, and
    another process has counted its end; job_id: of a running one, cut to 48 bytes, empty if it has none.
    """

    execution: int
    start: float
    end: float
    series: int
    running: bool
    lost: bool
    counted: bool = False
    job_id: str = ""


class Journal:
    """The journal of the slot's owner. The state word is written last, so that a kill leaves no false entry."""

    def __init__(self, words: "memoryview[int]", times: "memoryview[float]", entries: int, lease: int) -> None:
        self._words = words  # unsigned 64-bit
        self._times = times  # the same bytes as float64
        self._job_ids = words[layout.JOURNAL_COLUMNS * entries :].cast("B")
        self._entries = entries
        self._running = layout.pack_state(lease, layout.RUNNING)
        self._ended = layout.pack_state(lease, layout.ENDED)
        self._sorted = False
        self._free: deque[int] = deque()  # first in, first out: the entry that ended last is overwritten last
        self._kept: deque[int] = deque()
        self._moved: dict[int, tuple[Journal, int]] = {}  # entries that continue in a new generation's journal

    def begin(self, execution: int, start: float, series: int, job_id: str = "") -> int | None:
        """Enter an execution that starts. Returns its entry; None when running executions use all entries."""
        try:
            entry = self._free.popleft()
        except IndexError:
            other = self._another()
            if other is None:
                return None
            entry = other
        n, words = self._entries, self._words
        words[entry] = layout.EMPTY
        words[n + entry] = execution
        self._times[2 * n + entry] = start
        self._times[3 * n + entry] = 0.0
        words[4 * n + entry] = series
        if job_id:
            try:
                text = job_id.encode()
            except UnicodeEncodeError:  # a lone surrogate
                text = job_id.encode("utf-8", "replace")
            _pack_job_id(self._job_ids, entry * _JOB_ID_SIZE, text)
        else:
            self._job_ids[entry * _JOB_ID_SIZE] = 0
        words[entry] = self._running
        return entry

    def end(self, entry: int, at: float) -> None:
        """Mark an execution as ended. Call it before its end is recorded in cells."""
        self._times[3 * self._entries + entry] = at
        self._words[entry] = self._ended
        self._free.append(entry)
        if self._moved and entry in self._moved:
            journal, moved = self._moved.pop(entry)
            journal.end(moved, at)

    def running(self) -> list[tuple[int, int, float, int]]:
        """Return entry, execution, start and series of each execution that this owner runs."""
        n, words, times = self._entries, self._words, self._times
        return [
            (entry, words[n + entry], times[2 * n + entry], words[4 * n + entry])
            for entry in range(n)
            if words[entry] == self._running
        ]

    def continue_in(self, journal: "Journal", entry: int, series: int) -> None:
        """Enter a running execution in a new generation's journal; `end` ends both. series: its first cell there."""
        n = self._entries
        job_id = layout.unpack_job_id(self._job_ids, entry * _JOB_ID_SIZE)
        moved = journal.begin(self._words[n + entry], self._times[2 * n + entry], series, job_id)
        if moved is not None:
            self._moved[entry] = (journal, moved)

    def _another(self) -> int | None:
        """Find an entry to use when none is known to be free; None when there is none."""
        if not self._sorted:
            self._sort_entries()
        for entries in (self._free, self._kept):
            try:
                return entries.popleft()
            except IndexError:  # empty, or another thread took the last one
                continue
        return None

    def _sort_entries(self) -> None:
        """Sort the entries: empty and long-ended ones are free; the others are reused last, the oldest first."""
        n = self._entries
        starts, ends = self._times[2 * n : 3 * n].tolist(), self._times[3 * n : 4 * n].tolist()
        oldest_kept = time.time() - KEEP
        free: list[int] = []
        kept: list[tuple[float, int]] = []
        for entry, word in enumerate(self._words[:n].tolist()):
            if layout.unpack_state(word)[1] in (layout.RUNNING, layout.COUNTED):  # an earlier owner died
                kept.append((starts[entry], entry))
            elif ends[entry] > oldest_kept:
                kept.append((ends[entry], entry))
            else:
                free.append(entry)
        self._kept = deque(entry for _, entry in sorted(kept))
        self._free = deque(free)
        self._sorted = True


def entries(data: bytes | memoryview, header: layout.SlotHeader, lease: int | None) -> Iterator[Entry]:
    """Yield the entries in a slot's bytes. lease: of the slot's living owner, None for a free slot."""
    for i, word in enumerate(_states(data, header)):
        if word:
            entry = _entry(data, header, i, word, lease)
            if entry is not None:
                yield entry


def _states(data: bytes | memoryview, header: layout.SlotHeader) -> tuple[int, ...]:
    return struct.unpack_from(f"<{header.journal}Q", data, layout.JOURNAL_OFFSET)


def _entry(data: bytes | memoryview, header: layout.SlotHeader, i: int, word: int, lease: int | None) -> Entry | None:
    """Return an entry with this state word; None when it is not complete."""
    writer, code = layout.unpack_state(word)
    if code not in (layout.RUNNING, layout.ENDED, layout.COUNTED):
        return None
    column = header.journal * layout.CELL
    first = layout.JOURNAL_OFFSET + i * layout.CELL
    (execution,) = _UNSIGNED.unpack_from(data, first + column)
    (start,) = _FLOAT.unpack_from(data, first + 2 * column)
    (end,) = _FLOAT.unpack_from(data, first + 3 * column)
    (series,) = _UNSIGNED.unpack_from(data, first + 4 * column)
    if not 0.0 <= start < inf:  # not a possible start: damage
        start = nan
    if code == layout.RUNNING and writer == lease:
        job_id = layout.unpack_job_id(data, layout.job_id_offset(header.journal, i))
        return Entry(execution, start, end, series, running=True, lost=False, job_id=job_id)
    return Entry(execution, start, end, series, False, code != layout.ENDED, code == layout.COUNTED)


def owner_and_running(
    data: bytes | memoryview, header: layout.SlotHeader
) -> tuple[layout.ProcessIdentity | None, tuple[Entry, ...]]:
    """Return the owner of a held slot and its running executions; None and () without a complete owner record."""
    try:
        lease, owner = layout.unpack_owner(bytes(data[layout.OWNER_OFFSET : layout.OWNER_OFFSET + layout.OWNER_SIZE]))
    except Damaged:
        return None, ()
    states, running = _states(data, header), layout.pack_state(lease, layout.RUNNING)
    if running not in states:
        return owner, ()
    found = (_entry(data, header, i, word, lease) for i, word in enumerate(states) if word == running)
    return owner, tuple(entry for entry in found if entry is not None)


def unended(found: list[Entry]) -> list[Entry]:
    """Return the entries without an end among the entries of one id.

    Each start is a separate execution, because a rerun has the same id.
    """
    ended = {entry.start for entry in found if entry.counted or not (entry.running or entry.lost)}
    return [entry for entry in found if (entry.running or entry.lost) and entry.start not in ended]


def find(directory: Directory, execution: int) -> list[Entry]:
    """Return the entries of an execution in all slots, the latest start first.

    Slots that cannot be read are skipped.

    Raises:
        OSError: when the directory cannot be listed.
    """
    found: list[Entry] = []
    for number in directory.slots():
        try:
            with closing(directory.open(slot_name(number), os.O_RDONLY)) as fd:
                live = is_ready(fd)
                head, header = _head(fd)
                lease = layout.lease_of(head) if live else None
                found += [entry for entry in entries(head, header, lease) if entry.execution == execution]
        except (OSError, RegistryError, struct.error):
            continue
    return sorted(found, key=lambda entry: entry.start, reverse=True)


def mark_counted(directory: Directory, execution: int, start: float) -> None:
    """Mark an execution in the slot of its dead owner as counted: readers no longer show it as unresolved.

    The state word is compared and then written, not in one step. If the slot's next owner begins an execution in this
    very entry in between, that execution is not shown as active, and its end is still counted.

    Raises:
        OSError: when the directory cannot be listed.
    """
    for number in directory.slots():
        try:
            with closing(directory.open(slot_name(number), os.O_RDWR)) as fd:
                live = is_ready(fd)
                head, header = _head(fd)
                lease = layout.lease_of(head) if live else None
                for i, word in enumerate(_states(head, header)):
                    entry = _entry(head, header, i, word, lease) if word else None
                    if entry is None or (entry.execution, entry.start) != (execution, start):
                        continue
                    if not entry.lost or entry.counted:
                        continue
                    at = layout.JOURNAL_OFFSET + i * layout.CELL
                    if os.pread(fd, layout.CELL, at) == _UNSIGNED.pack(word):
                        counted = layout.pack_state(layout.unpack_state(word)[0], layout.COUNTED)
                        os.pwrite(fd, _UNSIGNED.pack(counted), at)
        except (OSError, RegistryError, struct.error):
            continue


def _head(fd: int) -> tuple[bytes, layout.SlotHeader]:
    """Return a slot's bytes before its cells, and its header. Raises OSError, RegistryError."""
    head = os.pread(fd, 2 * layout.PAGE, 0)
    header = layout.SlotHeader.unpack(head)
    if header.cells_offset > len(head):
        head = os.pread(fd, header.cells_offset, 0)
    return head, header
