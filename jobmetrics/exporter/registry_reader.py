"""Read the registry directory for the exporter, and the resident memory of its workers."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import psutil

from jobmetrics.errors import Damaged, DirectoryMissing, JobmetricsError, RegistryError
from jobmetrics.families import JOBS, JOBS_PUBLISHED, JOBS_RESERVED, OVERFLOW
from jobmetrics.log_throttle import ThrottledLog
from jobmetrics.registry import Directory, ProcessIdentity, pid_namespace
from jobmetrics.registry.read import Snapshot, SnapshotReader


@dataclass(frozen=True, slots=True)
class DirectoryReading:
    """One reading of the directory.

    snapshot: None if the directory could not be read. reason: why it could not be read. seconds: duration of the
    reading.
    """

    snapshot: Snapshot | None
    reason: str | None
    seconds: float


NAMES_SECONDS = 60.0  # after which the names of queues are read again; each scrape reads them as well

_NAMING = frozenset(family.name for family in (JOBS_PUBLISHED, JOBS, JOBS_RESERVED))


class RegistryDirectory:
    """Reads a registry directory for several threads, one at a time. Only `require` raises.

    clock: monotonic seconds.
    """

    def __init__(
        self,
        directory: Directory,
        log: ThrottledLog,
        hide_after: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path = directory.path
        self._log = log
        self._reader = SnapshotReader(directory, hide_after=hide_after)
        self._lock = threading.Lock()
        self._clock = clock
        self._queues: dict[str, tuple[str, ...]] = {}
        self._queues_until = clock()

    def require(self, *, missing_ok: bool) -> None:
        """Check at the start that the directory can be read.

        A damaged directory passes, because the next worker sets damaged files aside.

        Raises:
            RegistryError: The directory is not safe to use, or is missing and `missing_ok` is false.
            JobmetricsError: The operating system refuses the access.
        """
        try:
            with self._lock:
                self._reader.read()
        except Damaged:
            return
        except DirectoryMissing:
            if not missing_ok:
                raise
        except OSError as error:
            raise JobmetricsError(_reason(self.path, error)) from None

    def read(self) -> DirectoryReading:
        """Read the directory now."""
        with self._lock:
            start = time.perf_counter()
            try:
                snapshot = self._reader.read()
            except (OSError, RegistryError) as error:
                reason = _reason(self.path, error)
                self._log.warning("directory", "jobmetrics: no metrics of workers: %s", reason)
                self._queues_until = self._clock() + NAMES_SECONDS  # the last names stay: a gap would hide depths
                return DirectoryReading(None, reason, time.perf_counter() - start)
            self._queues, self._queues_until = _queue_names(snapshot), self._clock() + NAMES_SECONDS
            return DirectoryReading(snapshot, None, time.perf_counter() - start)

    def queues(self, system: str) -> tuple[str, ...]:
        """Return the names of the queues that the directory knows for a job system, in ascending order.

        Jobs were published to them, run from them, or taken from them by a worker. A reading of the last minute is used
        if there is one.
        """
        if self._clock() >= self._queues_until:
            self.read()
        return self._queues.get(system, ())

    def close(self) -> None:
        """Close all files, unless a scrape that hangs still holds the lock."""
        if self._lock.acquire(timeout=0.2):
            try:
                self._reader.close()
            finally:
                self._lock.release()


def _queue_names(snapshot: Snapshot) -> dict[str, tuple[str, ...]]:
    """Return the names of queues by job system. Names that no broker's client can send are left out."""
    found: dict[str, set[str]] = {}
    for family, samples in snapshot.families:
        if family.name in _NAMING and {"system", "queue_name"} <= set(family.labels):
            system, queue = family.labels.index("system"), family.labels.index("queue_name")
            for sample in samples:
                found.setdefault(sample.values[system], set()).add(sample.values[queue])
    return {
        system: tuple(sorted(name for name in names if name and name != OVERFLOW and name.isprintable()))
        for system, names in found.items()
    }


def _reason(path: str, error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{error.filename or path} cannot be read: {error.strerror or error}"
    message = str(error)
    return message if path in message else f"{path}: {message}"


class WorkerMemory:
    """Reads the memory of worker processes. Not thread-safe."""

    def __init__(self) -> None:
        self._namespace = pid_namespace()
        self._processes: dict[tuple[int, int], psutil.Process] = {}  # by pid and start; making one is the slowest step

    def by_system(self, owners: Iterable[ProcessIdentity]) -> dict[str, float]:
        """Sum the resident memory of each system's processes, in bytes. Shared pages count once for each process.

        A system is absent if one of its processes cannot be read or runs in another pid namespace: a partial sum
        would look like less memory.
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

    def _resident(self, owner: ProcessIdentity, known: dict[tuple[int, int], psutil.Process]) -> float | None:
        """Return one process's memory in bytes: 0 if it has ended, None if it cannot be read."""
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
