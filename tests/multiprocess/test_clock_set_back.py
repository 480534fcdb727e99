"""A clock that was ahead and is set back: records made afterwards replace timestamps in the future."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pytest

from jobmetrics.exporter.diagnosis import contents
from jobmetrics.findings import PROBLEM
from jobmetrics.instruments import bound
from tests.multiprocess.support import Child, Worker, child, in_child, serve
from tests.support import readings

YEAR = 365 * 86_400.0
NAME = "jobs_last_success_timestamp_seconds"


class Clocked(Worker):
    """Set the wall clock ahead, in seconds."""

    def be_ahead(self, seconds: float) -> None:
        def wall() -> float:
            return time.time() + seconds

        self.recorder._wall = wall
        setattr(bound, "time", type("Time", (), {"time": staticmethod(wall)}))  # noqa: B010 - a module to mypy

    def latest_is(self, value: float) -> None:
        self.latest.at(("all",)).set(value)


def clocked(path: Path) -> Callable[..., None]:
    return lambda pipe: serve(Clocked(path), pipe)


def job_ahead(one: Child) -> None:
    one.ask("be_ahead", YEAR)
    one.ask("job")


def age(path: Path) -> float | None:
    """Seconds since the last success shown; None if none is shown."""
    found = readings.values(path, NAME)
    return time.time() - found["python", "job", "queue"] if found else None


def assert_just_now(path: Path) -> None:
    seconds = age(path)
    assert seconds is not None
    assert 0.0 <= seconds < 60.0


def test_the_next_success_in_the_same_process_counts(registry_dir: Path) -> None:
    with child(clocked(registry_dir)) as one:
        job_ahead(one)
        one.ask("be_ahead", 0.0)
        one.ask("job")
        assert_just_now(registry_dir)
        one.leave()


@pytest.mark.parametrize("lives", [True, False])
def test_a_success_of_another_process_counts(lives: bool, registry_dir: Path) -> None:
    with child(clocked(registry_dir)) as one, child(clocked(registry_dir)) as other:
        job_ahead(one)
        other.ask("job")
        if not lives:
            one.kill()
        assert_just_now(registry_dir)
        other.kill()


def test_the_next_owner_of_the_slot_replaces_it(registry_dir: Path) -> None:
    with child(clocked(registry_dir)) as one:
        job_ahead(one)
        one.leave()
    in_child(lambda: Clocked(registry_dir).job())
    assert_just_now(registry_dir)


def test_a_timestamp_in_the_future_is_not_shown_and_check_reports_it(registry_dir: Path) -> None:
    with child(clocked(registry_dir)) as one:
        job_ahead(one)
        one.leave()
    snapshot = readings.snapshot(registry_dir)
    assert age(registry_dir) is None
    assert snapshot.ahead == 1
    findings = [finding for finding in contents(snapshot) if "in the future" in finding.text]
    assert [finding.state for finding in findings] == [PROBLEM]
    in_child(lambda: Clocked(registry_dir).job())
    assert readings.snapshot(registry_dir).ahead == 0


def test_the_value_set_last_is_shown_whatever_the_clock(registry_dir: Path) -> None:
    with child(clocked(registry_dir)) as one, child(clocked(registry_dir)) as other:
        one.ask("be_ahead", YEAR)
        one.ask("latest_is", 5.0)
        assert readings.values(registry_dir, "latest") == {("all",): 5.0}
        other.ask("latest_is", 7.0)
        assert readings.values(registry_dir, "latest") == {("all",): 7.0}
        one.ask("be_ahead", 0.0)
        one.ask("latest_is", 9.0)
        assert readings.values(registry_dir, "latest") == {("all",): 9.0}
        one.kill()
        other.kill()
