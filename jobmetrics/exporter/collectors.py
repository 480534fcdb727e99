"""Run each queue collector in a background thread, so that none can delay or break a scrape."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from jobmetrics.collector_api import Collector, CollectorOptions, Reading, without_secrets
from jobmetrics.errors import CollectorError, JobmetricsError, SettingsError
from jobmetrics.families import HISTOGRAM, Family
from jobmetrics.integration import System, find_systems
from jobmetrics.log_throttle import ThrottledLog

logger = logging.getLogger("jobmetrics")

DEFAULT_REFRESH = 5.0  # seconds from the end of one reading to the start of the next
CLOSE_WAIT = 0.3  # seconds that all threads together have to end


@dataclass(frozen=True, slots=True)
class CollectorState:
    """The state of a collector.

    up: whether its last reading succeeded; None until the first one ends. readings: empty unless up. duration: of the
    last completed reading, in seconds. last_success: epoch seconds. error: why it is not up.
    """

    name: str
    broker: str
    up: bool | None = None
    readings: Sequence[Reading] = ()
    duration: float | None = None
    last_success: float | None = None
    error: str | None = None


@dataclass(frozen=True, slots=True)
class _Outcome:
    """The result of one reading. ended_at: monotonic seconds. duration: seconds."""

    ended_at: float
    duration: float
    readings: Sequence[Reading] = ()
    error: str | None = None


class BackgroundCollector:
    """Runs one collector repeatedly and keeps its last reading.

    A reading that is older than `refresh` and `timeout` together is not shown.

    Args:
        collector: The collector. Only the background thread calls it.
        refresh: Seconds from the end of one reading to the start of the next.
        timeout: Seconds after which a reading counts as failed. It cannot be interrupted, and the next one starts
            after it.
        log: Logs failed readings.
        clock: Returns monotonic seconds.
        wall_clock: Returns epoch seconds.
    """

    def __init__(
        self,
        collector: Collector,
        *,
        refresh: float,
        timeout: float,
        log: ThrottledLog,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.name = str(collector.name)
        self.broker = str(collector.broker)
        self._collector = collector
        self._refresh = refresh
        self._timeout = timeout
        self._log = log
        self._clock = clock
        self._wall_clock = wall_clock
        self._stop = threading.Event()
        self._has_read = threading.Event()
        self._outcome: _Outcome | None = None
        self._started_at: float | None = None  # of the reading in progress
        self._last_success: float | None = None
        self._thread = threading.Thread(target=self._run, name=f"jobmetrics-{self.name}-{self.broker}", daemon=True)

    def start(self) -> None:
        """Start the thread. It is a daemon thread, so that a collector that hangs does not keep the process alive."""
        self._thread.start()

    def wait(self, seconds: float) -> None:
        """Wait at most this many seconds for the first reading to end."""
        self._has_read.wait(seconds)

    def stop(self) -> None:
        """Ask the thread to end after its current reading."""
        self._stop.set()

    def join(self, seconds: float) -> None:
        """Wait at most this many seconds for the thread to end."""
        self._thread.join(seconds)

    def state(self) -> CollectorState:
        """Return the current state without waiting."""
        outcome, started_at, now = self._outcome, self._started_at, self._clock()
        duration = outcome.duration if outcome else None
        error = outcome.error if outcome else None
        if started_at is not None and now - started_at > self._timeout:
            error = f"no answer within {self._timeout:g} s"
            self._complain(error)
        elif outcome is None:
            return CollectorState(self.name, self.broker)
        elif error is None and now - outcome.ended_at > self._refresh + self._timeout:
            error = f"the last reading is {now - outcome.ended_at:.0f} s old"
        readings = outcome.readings if outcome and error is None else ()
        return CollectorState(self.name, self.broker, error is None, readings, duration, self._last_success, error)

    def _run(self) -> None:
        while True:
            self._collect_once()
            self._has_read.set()
            if self._stop.wait(self._refresh):
                break
        try:
            self._collector.close()
        except Exception as error:  # noqa: BLE001 - another package's code, and the process is ending
            logger.debug("jobmetrics: closing collector %s: %s", self.name, type(error).__name__)

    def _collect_once(self) -> None:
        start = self._started_at = self._clock()
        readings: Sequence[Reading] = ()
        error = None
        try:
            readings = _checked(self._collector.collect())
        except CollectorError as failure:
            error = without_secrets(str(failure))
        except BaseException as failure:  # noqa: BLE001 - another package's code; its message may hold a secret
            error = f"{type(failure).__name__} in the collector"
        if error is None:
            if self._outcome is not None and self._outcome.error is not None:
                logger.info("jobmetrics: collector %s (broker %s) reads again", self.name, self.broker)
            self._last_success = self._wall_clock()
        else:
            self._complain(error)
        end = self._clock()
        self._outcome = _Outcome(end, end - start, readings, error)
        self._started_at = None

    def _complain(self, error: str) -> None:
        subject = f"collector {self.name} {self.broker}"
        self._log.warning(subject, "jobmetrics: collector %s (broker %s): %s", self.name, self.broker, error)


def _checked(readings: Iterable[object]) -> list[Reading]:
    """Return the readings without duplicates. Raises CollectorError if one is not valid."""
    found: dict[tuple[str, tuple[str, ...]], Reading] = {}
    for reading in readings:
        if not isinstance(reading, Reading):
            raise CollectorError(f"it returned {type(reading).__name__}, which is not a Reading")
        # The annotations exclude most of what follows, but a third party may not run a type checker.
        family: object = reading.family
        values: object = reading.values
        value: object = reading.value
        if not isinstance(family, Family):
            raise CollectorError(f"it returned {type(family).__name__} where a family belongs")
        if family.type == HISTOGRAM:
            raise CollectorError(f"it returned the histogram {family.name}; readings are single values")
        texts = isinstance(values, tuple) and all(isinstance(text, str) for text in values)
        if not texts or len(reading.values) != len(family.labels):
            raise CollectorError(f"it returned {family.name} without a string for each of {', '.join(family.labels)}")
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise CollectorError(f"it returned {family.name} with a value that is not a finite number")
        found.setdefault((family.name, reading.values), reading)
    return list(found.values())


class BackgroundCollectors:
    """All background collectors of an exporter."""

    def __init__(self, collectors: Iterable[BackgroundCollector]) -> None:
        self._collectors = tuple(collectors)

    def start(self) -> None:
        """Start all threads."""
        for collector in self._collectors:
            collector.start()

    def wait(self, seconds: float) -> None:
        """Wait at most this many seconds for all first readings to end."""
        deadline = time.monotonic() + seconds
        for collector in self._collectors:
            collector.wait(max(0.0, deadline - time.monotonic()))

    def states(self) -> list[CollectorState]:
        """Return the current states without waiting."""
        return [collector.state() for collector in self._collectors]

    def close(self) -> None:
        """End the threads. A thread that hangs is abandoned."""
        for collector in self._collectors:
            collector.stop()
        deadline = time.monotonic() + CLOSE_WAIT
        for collector in self._collectors:
            collector.join(max(0.0, deadline - time.monotonic()))


def find(options: CollectorOptions) -> list[Collector]:
    """Make the collectors of all installed job systems that the options select.

    Collectors of other systems are not imported. A package that fails and was not selected by an option is logged and
    left out.

    Raises:
        SettingsError: The options are wrong.
        JobmetricsError: A package that the options need is not installed.
    """
    systems, broken = find_systems()
    for line in broken:
        logger.warning("jobmetrics: %s", line)
    known = {option.keyword for system in systems for option in system.options}
    for keyword in options.given:
        if keyword not in known:
            raise SettingsError(
                f"no installed job system has the option {keyword}; allowed are {', '.join(sorted(known))}"
            )
    collectors: list[Collector] = []
    for system in systems:
        if system.is_asked_for(options):
            collectors.extend(_made(system, options))
    _refuse_twins(collectors)
    return collectors


def _made(system: System, options: CollectorOptions) -> list[Collector]:
    if system.collectors is None:
        return []
    try:
        found = list(system.collectors(options))
        if not all(hasattr(collector, each) for collector in found for each in ("name", "broker", "collect", "close")):
            raise TypeError(f"the collectors of {system.name} do not have name, broker, collect and close")
    except JobmetricsError:
        raise
    except ImportError as error:
        if system.options:
            remedy = f"; pip install '{system.requirement}'" if system.requirement else ""
            needed = error.name or "a package"
            raise JobmetricsError(f"reading queues of {system.name} needs {needed}{remedy}") from None
        logger.warning("jobmetrics: collectors of %s cannot be imported: %s", system.name, error)
    except (Exception, SystemExit) as error:
        if system.options:
            raise
        logger.warning("jobmetrics: collectors of %s cannot be made: %s", system.name, type(error).__name__)
    else:
        return found
    return []


def _refuse_twins(collectors: list[Collector]) -> None:
    seen = set()
    for collector in collectors:
        if (collector.name, collector.broker) in seen:
            raise SettingsError(
                f"two {collector.name} brokers are named {collector.broker!r}; give each a name with NAME=URL"
            )
        seen.add((collector.name, collector.broker))
