"""Resident memory of the worker processes that hold slots, as far as we may know it."""

from __future__ import annotations

from collections.abc import Iterable

import psutil

from jobmetrics.registry.layout import Owner
from jobmetrics.registry.owner import pid_namespace


class WorkerMemory:
    """Asks for the same processes again and again. Not for several threads at once."""

    def __init__(self) -> None:
        self._namespace = pid_namespace()
        self._processes: dict[tuple[int, int], psutil.Process] = {}  # by pid and start: making one costs the most

    def by_system(self, owners: Iterable[Owner]) -> dict[str, float]:
        """Bytes by system, each process once; pages that processes share count in each.

        A system is absent where one of its processes may not be looked at, or runs in another pid namespace: a sum
        that lacks some of them would look like less memory.
        """
        found: dict[str, float] = {}
        unknown = set()
        known, self._processes = self._processes, {}
        for owner in {(owner.pid, owner.start, owner.namespace): owner for owner in owners if owner.system}.values():
            size = self._resident(owner, known) if owner.namespace in (0, self._namespace) else None
            if size is None:
                unknown.add(owner.system)
            else:
                found[owner.system] = found.get(owner.system, 0.0) + size
        return {system: size for system, size in found.items() if system not in unknown}

    def _resident(self, owner: Owner, known: dict[tuple[int, int], psutil.Process]) -> float | None:
        """One process's; 0 when it has ended meanwhile, None when it may not be looked at."""
        key = owner.pid, owner.start
        try:
            process = known.get(key) or psutil.Process(owner.pid)
            size = float(process.memory_info().rss)
        except psutil.NoSuchProcess:
            return 0.0
        except (psutil.Error, OSError):
            return None
        self._processes[key] = process
        return size
