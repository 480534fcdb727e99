"""Counts of each process's updates in shared memory: the parent reads them after a SIGKILL."""

from __future__ import annotations

import mmap
from dataclasses import dataclass, field

BEGUN, DONE, WAITING, ENDED = range(4)
WORDS = 4
LANES = 64  # threads, signal handlers and forked children of one process, each with its own words


class Account:
    """The updates of one process and its forked children, counted before and after each.

    A lane is used by one thread of one process at a time, so its words need no lock.

    Attributes:
        killed: Whether the process was killed. Then each lane may have one update in flight.
    """

    def __init__(self) -> None:
        self.killed = False
        self._memory = mmap.mmap(-1, LANES * WORDS * 8)
        self._words = memoryview(self._memory).cast("q")

    def begin(self, lane: int = 0) -> None:
        self._words[lane * WORDS + BEGUN] += 1

    def end(self, lane: int = 0, *, in_slot: bool = True) -> None:
        """in_slot: False if the update waits in process memory, which is lost with the process."""
        self._words[lane * WORDS + DONE] += 1
        at = lane * WORDS + WAITING
        self._words[at] = 0 if in_slot else self._words[at] + 1

    def close(self, lane: int) -> None:
        """The lane's process has ended: updates in its memory are lost, and another process may use the lane."""
        self._words[lane * WORDS + ENDED] += self._words[lane * WORDS + WAITING]
        self._words[lane * WORDS + WAITING] = 0

    def total(self, word: int) -> int:
        return sum(self._words[word::WORDS])

    def in_flight(self) -> list[int]:
        """By lane: updates that began and did not return."""
        pairs = zip(self._words[BEGUN::WORDS], self._words[DONE::WORDS], strict=True)
        return [begun - done for begun, done in pairs]


@dataclass
class UpdateLedger:
    """All accounts of a storm."""

    accounts: list[Account] = field(default_factory=list)

    def open(self) -> Account:
        self.accounts.append(Account())
        return self.accounts[-1]

    def _total(self, word: int) -> int:
        return sum(account.total(word) for account in self.accounts)

    @property
    def kills(self) -> int:
        return sum(account.killed for account in self.accounts)

    @property
    def done(self) -> int:
        """Updates that returned to their caller."""
        return self._total(DONE)

    @property
    def begun(self) -> int:
        """Updates that began: at most one more than done for each lane of a killed process."""
        return self._total(BEGUN)

    @property
    def waiting(self) -> int:
        """Updates that were only in a process's memory when it ended."""
        return self._total(WAITING) + self._total(ENDED)

    def assert_agrees(self, counted: float, dropped: float = 0.0, *, what: str) -> None:
        """Fail unless every finished update is counted once, and no other update except those in flight at a kill.

        Args:
            counted: The total in the directory.
            dropped: Updates that the directory reports as lost.
            what: The name in the failure message.
        """
        least, most = self.done - self.waiting - dropped, self.begun
        line = f"{what}: ledger {self.done} (+{most - self.done} in flight), counted {counted:.0f}, kills {self.kills}"
        line += f", waiting in memory {self.waiting}, dropped {dropped:.0f}"
        print(line)
        assert self.done > 0, line
        for account in self.accounts:
            assert set(account.in_flight()) <= ({0, 1} if account.killed else {0}), line
        assert least <= counted <= most, line
