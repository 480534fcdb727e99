"""A slot leased for the next child before it is forked, so that its first record costs it next to nothing.

A lease is the lock of an open(). The child inherits it; the parent closes its own descriptor after the fork, and the
lease ends with the child. One slot at a time: while the last child that was given it lives, the next ones lease for
themselves, so that children that record nothing never hold more than this one.
"""

from __future__ import annotations

from collections.abc import Iterable

from jobmetrics.registry.leasing import PresentCells, lease, lease_again
from jobmetrics.registry.merging import PresentCell
from jobmetrics.registry.owner import Holder
from jobmetrics.registry.slot import Slot, SlotPlan


class HandOver:
    """The parent's side between its hooks around a fork. slot: what the child is to have, None between forks."""

    def __init__(self) -> None:
        self.slot: Slot | None = None
        self._last: Slot | None = None  # given to the last child; its mapping serves again

    def offer(
        self,
        plan: SlotPlan,
        holder: Holder,
        *,
        cells: int,
        present_cells: PresentCells,
        unchanged: Iterable[PresentCell] | None,
        hint: int,
        started: int,
    ) -> None:
        """Before a fork: lease the slot that the last child had, or the one at the hint; none if that is held.

        For the arguments see `leasing.acquire`; unchanged: the live cells unless a child has added to the index, which
        spares a look at it where the last child was the slot's last owner too.

        Raises:
            OSError: when the directory cannot be used.
        """
        size = plan.size(cells)
        slot = lease_again(plan, self._last, size) if self._last is not None else None
        if slot is None:
            slot = lease(plan, hint, size)
        if not slot:
            return
        try:
            ours = unchanged is not None and self._last is not None and slot.has_last_owner_of(self._last)
            slot.prepare(holder, unchanged if ours and unchanged is not None else present_cells(), started)
        except BaseException:
            slot.release()
            raise
        self.slot = self._last = slot

    def close(self) -> None:
        """In the parent, after the fork: from now on the lease is the child's alone.

        Raises:
            OSError: when the descriptor was closed by somebody else.
        """
        slot, self.slot = self.slot, None
        if slot is not None:
            slot.release()
