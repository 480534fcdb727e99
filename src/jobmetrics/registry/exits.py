"""Where a process ends by itself: its last chance to record what waits in its memory.

Nothing is called where a process leaves by `os._exit` or is killed. Who knows that it will calls `settle` before.
"""

from __future__ import annotations

import atexit
import sys
import weakref
from typing import Protocol


class Settling(Protocol):
    """Something that has an end."""

    def settle(self) -> None:
        """Called in the process that asked for it, once or twice, before it ends."""


def settle_at_exit(settling: Settling) -> None:
    """Have it settled where this process ends."""
    known = weakref.ref(settling)

    def settle() -> None:
        found = known()
        if found is not None:
            found.settle()

    atexit.register(settle)
    multiprocessing = sys.modules.get("multiprocessing.util")
    if multiprocessing is not None:  # its children leave by os._exit, after these
        multiprocessing.Finalize(None, settle, exitpriority=0)
