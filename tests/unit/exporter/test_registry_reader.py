"""The names of queues that the registry directory knows, for the collectors."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from jobmetrics import recorder
from jobmetrics.collector_api import Collector, CollectorOptions, Reading
from jobmetrics.events import SUCCESS, Ended, Job, Published, Started
from jobmetrics.exporter import collectors
from jobmetrics.exporter.app import build
from jobmetrics.exporter.registry_reader import NAMES_SECONDS, RegistryDirectory
from jobmetrics.families import JOBS_PUBLISHED, JOBS_QUEUE_DEPTH, OVERFLOW
from jobmetrics.instruments import BoundCounter
from jobmetrics.integration import System, Systems, worker_gauges
from jobmetrics.log_throttle import ThrottledLog
from jobmetrics.registry import Directory
from jobmetrics.registry.write.writer import Writer
from jobmetrics.settings import Settings
from tests.unit.doubles import FakeClock, die


@pytest.fixture
def directory(registry_dir: Path, clock: FakeClock) -> Iterator[RegistryDirectory]:
    made = RegistryDirectory(Directory(str(registry_dir)), ThrottledLog(clock), clock=clock)
    yield made
    made.close()


def publish(system: str, queue: str) -> None:
    recorder.default().published(Published(Job(system, "app.task", queue)))


def test_queues_are_known_from_publishing_running_and_taking_jobs(
    active_settings: Settings, directory: RegistryDirectory
) -> None:
    publish("celery", "reprots")
    execution = recorder.default().started(Started(Job("celery", "app.task", "ran"), "1", None))
    assert execution is not None
    recorder.default().ended(execution, Ended(SUCCESS))
    worker_gauges("celery", 1.0, {"taken": 0})
    publish("rq", "of rq")
    assert directory.queues("celery") == ("ran", "reprots", "taken")
    assert directory.queues("rq") == ("of rq",)
    assert directory.queues("spool") == ()


def test_names_that_are_no_queues_are_left_out(writer: Writer, directory: RegistryDirectory) -> None:
    """The overflow series, an unknown queue, and names that a broker's client cannot send."""
    for queue in ("", OVERFLOW, "a\nb", "\ud800", "mail"):
        BoundCounter(writer, JOBS_PUBLISHED, ("celery", "t", queue)).inc()
    assert directory.queues("celery") == ("mail",)


def test_names_are_those_of_the_last_scrape_or_of_a_reading_of_the_last_minute(
    active_settings: Settings, directory: RegistryDirectory, clock: FakeClock
) -> None:
    assert directory.queues("rq") == ()
    publish("rq", "mail")
    clock.advance(NAMES_SECONDS - 1.0)
    assert directory.queues("rq") == ()
    clock.advance(1.0)
    assert directory.queues("rq") == ("mail",)
    publish("rq", "video")
    directory.read()
    assert directory.queues("rq") == ("mail", "video")


def test_names_stay_while_the_directory_cannot_be_read(
    active_settings: Settings, registry_dir: Path, directory: RegistryDirectory, clock: FakeClock
) -> None:
    """A gap would hide the depths of these queues."""
    publish("rq", "mail")
    assert directory.queues("rq") == ("mail",)
    shutil.rmtree(registry_dir)
    clock.advance(NAMES_SECONDS)
    assert directory.queues("rq") == ("mail",)
    assert directory.read().snapshot is None


class Spool:
    """A third party's collector, which reads the queues that the directory knows."""

    name, broker = "spool", "main"

    def __init__(self, options: CollectorOptions) -> None:
        self._options = options

    def collect(self) -> Sequence[Reading]:
        queues = self._options.recorded_queues("spool")
        return [Reading(JOBS_QUEUE_DEPTH, ("spool", "main", queue), 1.0) for queue in queues]

    def close(self) -> None:
        pass


def test_a_third_partys_collector_is_given_the_names(
    registry_dir: Path, writer: Writer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(options: CollectorOptions) -> list[Collector]:
        return [Spool(options)]

    monkeypatch.setattr(collectors, "find_systems", lambda: Systems((System("spool", collectors=made),), ()))
    BoundCounter(writer, JOBS_PUBLISHED, ("spool", "t", "mail")).inc()
    exporter = build(Settings(dir=str(registry_dir)), CollectorOptions())
    exporter.collectors.start()
    try:
        exporter.collectors.wait(10.0)
        (state,) = exporter.collectors.states()
    finally:
        exporter.close()
        die(writer)
    assert [reading.values for reading in state.readings] == [("spool", "main", "mail")]


def test_without_an_exporter_no_queues_are_known() -> None:
    assert CollectorOptions().recorded_queues("celery") == ()
