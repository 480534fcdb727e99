"""The interface of job systems: a name, options, collectors and checks for the commands, and events from workers.

A package adds a job system with an entry point of the group `jobmetrics.systems` that names a `System`:

    [project.entry-points."jobmetrics.systems"]
    spool = "spool_metrics.system:SPOOL"

Every command loads that object for its options, so its module must not import the job system or anything slow. The
collectors and checks import what they need when they are called.

In a worker, an integration registers its system's name, passes events to the `current_recorder()` inside `guarded`
functions, and shows its worker with `worker_gauges`. Nothing here imports packages that workers do not need.

Of jobmetrics an integration imports this module, `jobmetrics.families`, `jobmetrics.errors` and, for its collectors,
`jobmetrics.collector_api`. The names here, by purpose:

- Systems: `System`, `Option`, `Recorded`, `register_system`.
- Events: `Job`, `Started`, `Ended`, `Lost`, `Published`, `Withdrawn`, the statuses, and the kinds of CPU time.
- Recording: `current_recorder`, which returns a `Recorder`; `Execution`, the result of `Recorder.started`; `running`,
  the context variable of the execution that `stage`, `add_items` and `current_job` find; `ErrorType`; `LOCK_WAIT`, a
  bound for `Writer.settle` in seconds.
- Errors: `guarded`; `let_through` for exceptions that belong to the job, for example its time limit.
- Gauges: `worker_gauges`, `clear_worker_gauges`; `Labelled`, `BoundGauge` and `label_value` for other families.
- State of the process: `process_state` holds one instance of a class, which tests replace. A spawned child gets its
  parent's settings by `peek_settings` and `use_settings`.
- Checks: `Finding` with `OK`, `NOTE` or `PROBLEM`; `recording_findings` and `summary_of_findings` for a check in the
  worker's environment.
- For the commands: `find_systems`, `Systems`, `known_names`, `ENTRY_POINT_GROUP`.
"""

# No `from __future__ import annotations`: NamedTuple would compile each string.
import os
import re
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from jobmetrics import families as f
from jobmetrics.events import (
    CPU_OF_CALLER,
    CPU_OF_FAMILY,
    CPU_OF_JOB,
    CPU_OF_THREAD,
    FAILURE,
    IGNORED,
    PYTHON,
    REJECTED,
    RETRY,
    REVOKED,
    STATUSES,
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
from jobmetrics.findings import recording as recording_findings
from jobmetrics.findings import summary as summary_of_findings
from jobmetrics.guard import guarded, let_through
from jobmetrics.instruments import BoundGauge, Labelled, label_value
from jobmetrics.job_context import Execution, running
from jobmetrics.recorder import ErrorType, Recorder
from jobmetrics.recorder import default as current_recorder
from jobmetrics.registry import LOCK_WAIT
from jobmetrics.runtime import state as process_state
from jobmetrics.settings import Settings
from jobmetrics.settings import peek as peek_settings
from jobmetrics.settings import use as use_settings

if TYPE_CHECKING:
    from jobmetrics.collector_api import Collector, CollectorOptions
    from jobmetrics.registry import Writer

__all__ = [
    "CPU_OF_CALLER",
    "CPU_OF_FAMILY",
    "CPU_OF_JOB",
    "CPU_OF_THREAD",
    "ENTRY_POINT_GROUP",
    "FAILURE",
    "IGNORED",
    "LOCK_WAIT",
    "NOTE",
    "OK",
    "PROBLEM",
    "REJECTED",
    "RETRY",
    "REVOKED",
    "STATUSES",
    "SUCCESS",
    "BoundGauge",
    "Ended",
    "ErrorType",
    "Execution",
    "Finding",
    "Job",
    "Labelled",
    "Lost",
    "Option",
    "Published",
    "Recorded",
    "Recorder",
    "Settings",
    "Started",
    "System",
    "Systems",
    "Withdrawn",
    "clear_worker_gauges",
    "current_recorder",
    "find_systems",
    "guarded",
    "known_names",
    "label_value",
    "let_through",
    "peek_settings",
    "process_state",
    "recording_findings",
    "register_system",
    "running",
    "summary_of_findings",
    "use_settings",
    "worker_gauges",
]

ENTRY_POINT_GROUP = "jobmetrics.systems"

COMMAND_OPTIONS = frozenset(
    {"as_json", "hide_after", "log_format", "log_level", "longer_than", "max_queues", "web_config"}
)
"""Options of the commands that contain an underscore. An option of a job system has another name."""

_OPTION_NAME = re.compile(r"[a-z0-9_]*[a-z0-9]\Z")


class Option(NamedTuple):
    """An option of the commands that read brokers.

    name: for example spool_folder. The option is --spool-folder on the command line, JOBMETRICS_EXPORTER_SPOOL_FOLDER
    in the environment, and spool_folder in the table [exporter] of the configuration file. repeatable: the option takes
    several values, and the collectors get a tuple. broker: each value is [NAME=]URL, and the collectors get a
    `jobmetrics.collector_api.Target`.
    """

    name: str
    metavar: str
    help: str
    repeatable: bool = False
    broker: bool = False

    @property
    def flag(self) -> str:
        """The option's name on the command line."""
        return f"--{self.name.replace('_', '-')}"

    @property
    def keyword(self) -> str:
        """The option's name in `CollectorOptions`, with a final s if it is repeatable."""
        return f"{self.name}s" if self.repeatable else self.name


Recorded = Callable[[Family], Mapping[tuple[str, ...], float]]
"""Returns what workers recorded: a family's values by label values. A histogram's value is its count."""


class System:
    """A job system for the commands.

    Args:
        name: The value of the label `system`: lower-case letters, digits and underscores.
        package: The distribution that `jobmetrics check` reports the version of; empty for none.
        minimum: The oldest supported version of the package, for example "5.3".
        requirement: The pip requirement that makes the collectors importable.
        options: The options. Each name begins with the system's name and an underscore.
        collectors: Makes the collectors from the values of the options. It is called once when a command starts, if one
            of the options is given or the system has no options. It raises SettingsError if an option is wrong.
        checks: Returns findings about the recorded values, for `jobmetrics check`.

    Raises:
        ValueError: A name is not allowed.
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
            if not _OPTION_NAME.match(option.name):
                raise ValueError(f"the option {option.name!r} of {name} is not allowed; it takes a-z, 0-9 and _")

    def is_asked_for(self, options: "CollectorOptions") -> bool:
        """Whether the options select this system: one of its options is given, or it has no options."""
        return not self.options or any(options.get(option.keyword) for option in self.options)


class Systems(NamedTuple):
    """The installed job systems, ordered by the names of their entry points.

    broken: one line for each entry point that cannot be used.
    """

    systems: tuple[System, ...]
    broken: tuple[str, ...]


class InstalledSystems:
    """The job systems that this process has loaded."""

    def __init__(self) -> None:
        self.found = _load_systems()


def find_systems() -> Systems:
    """Return the job systems of all installed packages. They are loaded once in a process.

    A package that cannot be loaded does not affect the others.
    """
    return process_state(InstalledSystems).found


def _load_systems() -> Systems:
    from importlib.metadata import entry_points

    found: dict[str, System] = {}
    broken = []
    for entry in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda entry: entry.name):
        try:
            system: Any = entry.load()
        except ImportError as error:
            broken.append(f"job system {entry.name} cannot be loaded: {error}")
        except (Exception, SystemExit) as error:  # noqa: BLE001 - another package's code; its message may hold a secret
            broken.append(f"job system {entry.name} cannot be loaded: {type(error).__name__}")
        else:
            reason = _refusal(entry.value, system, found)
            if reason:
                broken.append(f"job system {entry.name} cannot be used: {reason}")
            else:
                found[system.name] = system
    return Systems(tuple(found.values()), tuple(broken))


def _refusal(value: str, system: Any, found: Mapping[str, System]) -> str:
    """Return why the commands cannot use what an entry point names, or an empty string."""
    if not isinstance(system, System):
        return f"{value} is not a System"
    if found.get(system.name, system) is not system:
        return f"another package has the name {system.name}"
    taken = set(COMMAND_OPTIONS)
    for other in found.values():
        if other is not system:
            taken.update(name for option in other.options for name in (option.name, option.keyword))
    for option in system.options:
        names = {option.name, option.keyword}
        if names & taken:
            return f"the option {option.flag} exists already"
        taken |= names
    return ""


def known_names() -> tuple[str, ...]:
    """Return the values of the label `system` that installed packages may record."""
    return (*(system.name for system in find_systems().systems), PYTHON)


class _WorkerGauges:
    """The live gauges of one job system's worker in this process."""

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
    """The gauges of the workers in this process, by job system. started: the process that counted each one's start."""

    def __init__(self) -> None:
        self.by_system: dict[str, _WorkerGauges] = {}
        self.started: dict[str, int] = {}


def worker_gauges(system: str, capacity: float | None = 1.0, reserved: Mapping[str, int] | None = None) -> None:
    """Show that this process is a live worker. Call it again after each change.

    The first call counts the start of a worker. The gauges disappear when the process ends, even if it is killed; the
    worker is then counted in jobs_workers_lost_total.

    Args:
        system: The registered name of the job system.
        capacity: Jobs that the worker can run at once; None if unknown, to keep the last value.
        reserved: Jobs taken from the broker and not started, by queue.
    """
    recorder, shown = current_recorder(), process_state(ShownWorkers)
    gauges = shown.by_system.get(system)
    if gauges is None or gauges.writer is not recorder.writer:
        if gauges is not None and shown.started.get(system) == os.getpid():
            gauges.clear()  # in the directory that this worker recorded into before
        gauges = shown.by_system[system] = _WorkerGauges(recorder.writer, system)
    gauges.show(capacity, reserved or {})
    if shown.started.get(system) != os.getpid() and capacity is not None:
        shown.started[system] = os.getpid()
        recorder.worker_started(system)


def clear_worker_gauges(system: str) -> None:
    """Show that this process is not a worker of the job system any more, although it may live on."""
    shown = process_state(ShownWorkers)
    shown.started.pop(system, None)
    gauges = shown.by_system.get(system)
    if gauges is not None:
        gauges.clear()
