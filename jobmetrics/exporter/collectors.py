"""Queue collectors in the background, each in a thread of its own, so that none can delay or break a scrape."""

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
CLOSE_WAIT = 0.3  # seconds all threads together get to end


@dataclass(frozen=True, slots=True)
class CollectorState:
    """What is known of a collector now.

    up: whether its last reading succeeded, None before the first one has ended. readings: empty unless up.
    duration: of the last reading that ended, seconds. last_success: epoch seconds. error: why it is not up.
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
    """How a reading ended, on the monotonic clock."""

    ended_at: float
    duration: float
    readings: Sequence[Reading] = ()
    error: str | None = None


class BackgroundCollector:
    """Runs one collector again and again, and knows what it said last.

    refresh: seconds between two readings. timeout: seconds after which a reading that has not ended counts
    as failed; it cannot be interrupted, and the next one starts only after it. A reading older than both
    together is not shown.
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
        self._told = threading.Event()
        self._outcome: _Outcome | None = None
        self._started_at: float | None = None  # of the reading that is under way
        self._last_success: float | None = None
        self._thread = threading.Thread(target=self._run, name=f"jobmetrics-{self.name}-{self.broker}", daemon=True)

    def start(self) -> None:
        """Start the thread; it is a daemon, so that one that hangs keeps no process from ending."""
        self._thread.start()

    def wait(self, seconds: float) -> None:
        """Wait until the first reading has ended, for so long at the most."""
        self._told.wait(seconds)

    def stop(self) -> None:
        """Ask the thread to end after the reading it is at."""
        self._stop.set()

    def join(self, seconds: float) -> None:
        """Wait for the thread to end, for so long at the most."""
        self._thread.join(seconds)

    def state(self) -> CollectorState:
        """What is known now; never waits."""
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
            self._told.set()
            if self._stop.wait(self._refresh):
                break
        try:
            self._collector.close()
        except Exception as error:  # noqa: BLE001 - anybody's code, and the process is ending
            logger.debug("jobmetrics: closing collector %s: %s", self.name, type(error).__name__)

    def _collect_once(self) -> None:
        start = self._started_at = self._clock()
        readings: Sequence[Reading] = ()
        error = None
        try:
            readings = _checked(self._collector.collect())
        except CollectorError as failure:
            error = without_secrets(str(failure))
        except BaseException as failure:  # noqa: BLE001 - anybody's code; its message may hold a secret
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
    """Readings that can be shown. Raises CollectorError for anything else."""
    found: dict[tuple[str, tuple[str, ...]], Reading] = {}
    for reading in readings:
        if not isinstance(reading, Reading):
            raise CollectorError(f"it returned {type(reading).__name__}, which is no reading")
        # The types promise what follows; third parties may not have checked theirs.
        family: object = reading.family
        values: object = reading.values
        value: object = reading.value
        if not isinstance(family, Family):
            raise CollectorError(f"it returned {type(family).__name__} where a family belongs")
        if family.type == HISTOGRAM:
            raise CollectorError(f"it returned the histogram {family.name}; readings are single values")
        texts = isinstance(values, tuple) and all(isinstance(text, str) for text in values)
        if not texts or len(reading.values) != len(family.labels):
            raise CollectorError(f"it returned {family.name} without a text for each of {', '.join(family.labels)}")
        if not isinstance(value, (int, float)) or not math.isfinite(value):
            raise CollectorError(f"it returned {family.name} with a value that is no finite number")
        found.setdefault((family.name, reading.values), reading)
    return list(found.values())


class BackgroundCollectors:
    """All of them."""

    def __init__(self, collectors: Iterable[BackgroundCollector]) -> None:
        self._collectors = tuple(collectors)

    def start(self) -> None:
        """Start reading."""
        for collector in self._collectors:
            collector.start()

    def wait(self, seconds: float) -> None:
        """Wait until each has ended its first reading, for so long at the most."""
        deadline = time.monotonic() + seconds
        for collector in self._collectors:
            collector.wait(max(0.0, deadline - time.monotonic()))

    def states(self) -> list[CollectorState]:
        """What is known of each now; never waits."""
        return [collector.state() for collector in self._collectors]

    def close(self) -> None:
        """End the threads; one that hangs is left behind."""
        for collector in self._collectors:
            collector.stop()
        deadline = time.monotonic() + CLOSE_WAIT
        for collector in self._collectors:
            collector.join(max(0.0, deadline - time.monotonic()))


def find(options: CollectorOptions) -> list[Collector]:
    """The collectors of all installed job systems that have something to read.

    The collectors of a system that is not asked for are not even imported. A package that breaks without having been
    asked for is logged and left out.

    Raises:
        SettingsError: The options are wrong.
        JobmetricsError: Something that the options ask for is not installed.
    """
    systems, broken = find_systems()
    for line in broken:
        logger.warning("jobmetrics: %s", line)
    known = {option.keyword for system in systems for option in system.options}
    for keyword in options.given:
        if keyword not in known:
            raise SettingsError(
                f"no installed job system has the option {keyword}; there are {', '.join(sorted(known))}"
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
        return list(system.collectors(options))
    except JobmetricsError:
        raise
    except ImportError as error:
        if system.options:
            remedy = f"; pip install '{system.requirement}'" if system.requirement else ""
            needed = error.name or "a package"
            raise JobmetricsError(f"reading queues of {system.name} needs {needed}{remedy}") from None
        logger.warning("jobmetrics: collectors of %s cannot be imported: %s", system.name, error)
    except Exception as error:
        if system.options:
            raise
        logger.warning("jobmetrics: collectors of %s cannot be made: %s", system.name, type(error).__name__)
    return []


def _refuse_twins(collectors: list[Collector]) -> None:
    seen = set()
    for collector in collectors:
        if (collector.name, collector.broker) in seen:
            raise SettingsError(
                f"two {collector.name} brokers are named {collector.broker!r}; tell them apart with NAME=URL"
            )
        seen.add((collector.name, collector.broker))
