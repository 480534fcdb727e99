"""What a job system brings: its name, the options of its queues, what reads them, its checks.

A package adds a job system with an entry point of the group `jobmetrics.systems` that names a `System`:

    [project.entry-points."jobmetrics.systems"]
    spool = "spool_metrics.system:SPOOL"

Every command loads that object, for its options, so its module must import neither the job system nor anything slow.
Its collectors and checks import what they need when they are called.

In a worker, an integration registers its system's name, gives events to the `current_recorder()` inside `guarded`
functions, and shows its worker by `worker_gauges`. Nothing here imports what workers do without.
"""

# No `from __future__ import annotations`: NamedTuple would compile each string.
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from jobmetrics import families as f
from jobmetrics.events import (
    FAILURE,
    IGNORED,
    PYTHON,
    REJECTED,
    RETRY,
    REVOKED,
    SUCCESS,
    Ended,
    Job,
    Lost,
    Published,
    Started,
    Withdrawn,
)
from jobmetrics.families import Family, register_system
from jobmetrics.findings import NOTE, OK, PROBLEM, Finding
from jobmetrics.guard import guarded
from jobmetrics.instruments import BoundGauge, Labelled
from jobmetrics.recorder import Recorder
from jobmetrics.recorder import default as current_recorder
from jobmetrics.runtime import state

if TYPE_CHECKING:
    from jobmetrics.collector_api import Collector, CollectorOptions
    from jobmetrics.registry import Writer

__all__ = [
    "ENTRY_POINT_GROUP",
    "FAILURE",
    "IGNORED",
    "NOTE",
    "OK",
    "PROBLEM",
    "REJECTED",
    "RETRY",
    "REVOKED",
    "SUCCESS",
    "Ended",
    "Finding",
    "Job",
    "Lost",
    "Option",
    "Published",
    "Recorder",
    "Started",
    "System",
    "Systems",
    "Withdrawn",
    "clear_worker_gauges",
    "current_recorder",
    "find_systems",
    "guarded",
    "known_names",
    "register_system",
    "worker_gauges",
]

ENTRY_POINT_GROUP = "jobmetrics.systems"


class Option(NamedTuple):
    """An option of the commands that read brokers.

    name: as in spool_folder. It is --spool-folder on the command line, JOBMETRICS_EXPORTER_SPOOL_FOLDER in the
    environment, and spool_folder in the table [exporter] of the configuration file. repeatable: it takes several
    values, and the collectors get a tuple. broker: each value is [NAME=]URL, and the collectors get a
    `jobmetrics.collector_api.Target`.
    """

    name: str
    metavar: str
    help: str
    repeatable: bool = False
    broker: bool = False

    @property
    def flag(self) -> str:
        """What it is called on the command line."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def keyword(self) -> str:
        """What it is called in `CollectorOptions`: the name, in the plural if the option is repeatable."""
        return f"{self.name}s" if self.repeatable else self.name


# What workers have recorded: a family's values by label values; of a histogram, its count.
Recorded = Callable[[Family], Mapping[tuple[str, ...], float]]


class System:
    """A job system as the commands know it.

    Args:
        name: the value of the label `system`: lower-case letters, digits and underscores.
        package: the distribution whose version `jobmetrics check` shows; empty: none.
        minimum: the oldest supported version of the package, as in "5.3".
        requirement: what pip installs so that the collectors can be imported.
        options: the names of all begin with the system's name and an underscore.
        collectors: makes the collectors from what the options were given. It is called once when a command starts:
            if one of the options is given, or if the system has none. Raises SettingsError for options that are wrong.
        checks: what `jobmetrics check` should say about what the workers recorded.

    Raises:
        ValueError: for a name that is not allowed.
    """

    def __init__(
        self,
        name: str,
        *,
        package: str = "",
        minimum: str = "",
        requirement: str = "",
        options: Iterable[Option] = (),
        collectors: "Callable[[CollectorOptions], Iterable[Collector]] | None" = None,
        checks: Callable[[Recorded], Iterable[Finding]] | None = None,
    ) -> None:
        f.check_system_name(name)
        self.name = name
        self.package = package
        self.minimum = minimum
        self.requirement = requirement
        self.options = tuple(options)
        self.collectors = collectors
        self.checks = checks
        for option in self.options:
            if not option.name.startswith(f"{name}_"):
                raise ValueError(f"the option {option.name!r} of {name} is not allowed; it begins with {name}_")

    def is_asked_for(self, options: "CollectorOptions") -> bool:
        """Whether an option of the system is given. A system without options is always asked for."""
        return not self.options or any(options.get(option.keyword) for option in self.options)


class Systems(NamedTuple):
    """The installed job systems, in the order of their entry points' names.

    broken: one line for each entry point that cannot be used.
    """

    systems: tuple[System, ...]
    broken: tuple[str, ...]


def find_systems() -> Systems:
    """Load the job systems of all installed packages. A package that cannot be loaded costs only itself."""
    from importlib.metadata import entry_points

    found: dict[str, System] = {}
    broken = []
    for entry in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda entry: entry.name):
        try:
            system: Any = entry.load()
        except ImportError as error:
            broken.append(f"job system {entry.name} cannot be loaded: {error}")
        except Exception as error:  # noqa: BLE001 - another package's code; its message may hold a secret
            broken.append(f"job system {entry.name} cannot be loaded: {type(error).__name__}")
        else:
            if not isinstance(system, System):
                broken.append(f"job system {entry.name} cannot be used: {entry.value} is not a System")
            elif found.setdefault(system.name, system) is not system:
                broken.append(f"job system {entry.name} cannot be used: another package has the name {system.name}")
    return Systems(tuple(found.values()), tuple(broken))


def known_names() -> tuple[str, ...]:
    """The values of the label `system` that installed packages may record."""
    return (*(system.name for system in find_systems().systems), PYTHON)


class _WorkerGauges:
    """The live gauges of one system's worker in this process."""

    def __init__(self, writer: "Writer", system: str) -> None:
        self.writer = writer
        self._system = system
        self._workers = BoundGauge(writer, f.JOBS_WORKERS, (system,))
        self._capacity = BoundGauge(writer, f.JOBS_WORKER_CAPACITY, (system,))
        self._reserved = Labelled(BoundGauge, f.JOBS_RESERVED, writer)
        self._queues: set[str] = set()

    def show(self, capacity: float | None, reserved: Mapping[str, int]) -> None:
        if capacity is not None:
            self._workers.set(1.0)
            self._capacity.set(capacity)
        for queue in self._queues - reserved.keys():
            self._reserved.at((self._system, queue)).set(0.0)
        for queue, count in reserved.items():
            self._reserved.at((self._system, queue)).set(float(count))
        self._queues |= reserved.keys()

    def clear(self) -> None:
        for gauge in (self._workers, self._capacity):
            gauge.set(0.0)
        for queue in self._queues:
            self._reserved.at((self._system, queue)).set(0.0)


class ShownWorkers:
    """The workers that this process is."""

    def __init__(self) -> None:
        self.by_system: dict[str, _WorkerGauges] = {}


def worker_gauges(system: str, capacity: float | None = 1.0, reserved: Mapping[str, int] | None = None) -> None:
    """Show that this process is a living worker. Call it again when something changes.

    The gauges are live: they end with the process, however it ends.

    Args:
        system: the registered name.
        capacity: jobs that the worker can run at once; None while it is not known, which changes nothing.
        reserved: jobs taken from the broker and not started, by queue.
    """
    writer = current_recorder().writer
    workers = state(ShownWorkers).by_system
    gauges = workers.get(system)
    if gauges is None or gauges.writer is not writer:
        gauges = workers[system] = _WorkerGauges(writer, system)
    gauges.show(capacity, reserved or {})


def clear_worker_gauges(system: str) -> None:
    """Show that this process, which may live on, is no longer a worker of the system."""
    gauges = state(ShownWorkers).by_system.get(system)
    if gauges is not None:
        gauges.clear()
