"""The registry directory as the exporter sees it: a snapshot, or the reason why there is none."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

import psutil

from jobmetrics.errors import Damaged, DirectoryMissing, JobmetricsError, RegistryError
from jobmetrics.log_throttle import ThrottledLog
from jobmetrics.registry.directory import Directory
from jobmetrics.registry.layout import ProcessIdentity
from jobmetrics.registry.read.snapshot import Snapshot, SnapshotReader
from jobmetrics.registry.slots import pid_namespace


@dataclass(frozen=True, slots=True)
class DirectoryReading:
    """One look at the directory.

    snapshot: None when it could not be read, for `reason`. seconds: how long the look took.
    """

    snapshot: Snapshot | None
    reason: str | None
    seconds: float


class RegistryDirectory:
    """Reads one registry directory for any number of threads, one after another. Never raises once it serves."""

    def __init__(self, directory: Directory, log: ThrottledLog, hide_after: float | None = None) -> None:
        self.path = directory.path
        self._log = log
        self._reader = SnapshotReader(directory, hide_after=hide_after)
        self._lock = threading.Lock()

    def require(self, *, missing_ok: bool) -> None:
        """See at the start whether the directory can be read at all.

        A damaged one passes: a worker sets what is damaged aside and goes on.

        Raises:
            RegistryError: when it may not be read, or is missing and `missing_ok` is false.
            JobmetricsError: when the system does not let us.
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
            raise JobmetricsError(_told(self.path, error)) from None

    def read(self) -> DirectoryReading:
        """The directory as it is now."""
        with self._lock:
            start = time.perf_counter()
            try:
                snapshot = self._reader.read()
            except (OSError, RegistryError) as error:
                reason = _told(self.path, error)
                self._log.warning("directory", "jobmetrics: no metrics of workers: %s", reason)
                return DirectoryReading(None, reason, time.perf_counter() - start)
            return DirectoryReading(snapshot, None, time.perf_counter() - start)

    def close(self) -> None:
        """Close all files, unless a scrape that hangs holds on to them."""
        if self._lock.acquire(timeout=0.2):
            try:
                self._reader.close()
            finally:
                self._lock.release()


def _told(path: str, error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{error.filename or path} cannot be read: {error.strerror or error}"
    message = str(error)
    return message if path in message else f"{path}: {message}"


class WorkerMemory:
    """Asks for the same processes again and again. Not for several threads at once."""

    def __init__(self) -> None:
        self._namespace = pid_namespace()
        self._processes: dict[tuple[int, int], psutil.Process] = {}  # by pid and start: making one costs the most

    def by_system(self, owners: Iterable[ProcessIdentity]) -> dict[str, float]:
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

    def _resident(self, owner: ProcessIdentity, known: dict[tuple[int, int], psutil.Process]) -> float | None:
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
