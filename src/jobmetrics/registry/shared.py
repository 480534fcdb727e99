"""Numbers that a process shares with the children it forks, in memory, without a file.

All but `lost` are hints: each may be out of date, and nothing but time is lost then.
"""

from __future__ import annotations

import mmap

_LEASED_LAST, _CHILDREN_RECORD, _INDEX_LENGTH = range(3)
_LOST = {"disk full": 3, "process ended": 4}  # by reason


class SharedHints:
    """leased_last: the slot leased last, where the next child looks first; children_record: whether a child has
    leased one; index_length: of the index, in bytes, as the one of them that appended last left it."""

    __slots__ = ("_words",)

    def __init__(self) -> None:
        self._words = memoryview(mmap.mmap(-1, mmap.PAGESIZE)).cast("Q")

    @property
    def leased_last(self) -> int:
        return self._words[_LEASED_LAST]

    @property
    def children_record(self) -> bool:
        return self._words[_CHILDREN_RECORD] != 0

    @property
    def index_length(self) -> int:
        return self._words[_INDEX_LENGTH]

    def leased(self, slot: int, *, by_child: bool) -> None:
        self._words[_LEASED_LAST] = slot
        if by_child:
            self._words[_CHILDREN_RECORD] = 1

    def appended(self, index_length: int) -> None:
        self._words[_INDEX_LENGTH] = max(self._words[_INDEX_LENGTH], index_length)

    def lost(self, reason: str, updates: int) -> None:
        """Count the updates left in this process's memory at its end.

        Two processes that end in the same instant may count as one.
        """
        self._words[_LOST[reason]] += updates

    def take_lost(self) -> dict[str, int]:
        """Updates that ended with their processes, by reason, since any of the processes took them."""
        taken = {}
        for reason, word in _LOST.items():
            if self._words[word]:
                taken[reason], self._words[word] = self._words[word], 0
        return taken

    def new_index(self) -> None:
        self._words[_INDEX_LENGTH] = 0
