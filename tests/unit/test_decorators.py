from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobmetrics import recorder, settings, timed_job
from jobmetrics.context import current_execution, running
from jobmetrics.events import Job, Started
from jobmetrics.settings import Settings
from tests import readings
from tests.unit.doubles import die

HERE = __name__


class Refused(Exception):
    pass


@timed_job
def double(number: int, *, plus: int = 0) -> int:
    """Twice a number."""
    return 2 * number + plus


@timed_job
def refuse(error: BaseException) -> None:
    raise error


@timed_job
def outer(number: int) -> int:
    return double(number)


@timed_job
def tell() -> str | None:
    execution = current_execution()
    return None if execution is None else execution.job.job_type


@pytest.fixture(autouse=True)
def recorded(in_force: Settings) -> Iterator[None]:
    yield
    die(recorder.default().writer)


def ended(registry_dir: Path) -> dict[tuple[str, ...], float]:
    return readings.values(registry_dir, "jobs_total")


def test_call_returns_what_the_function_returns() -> None:
    assert double(4, plus=1) == 9


def test_function_keeps_name_docstring_and_signature() -> None:
    assert (double.__name__, double.__doc__) == ("double", "Twice a number.")
    assert list(inspect.signature(double).parameters) == ["number", "plus"]


def test_success_is_counted_under_module_and_name(registry_dir: Path) -> None:
    double(1)
    assert ended(registry_dir) == {("python", f"{HERE}.double", "", "success"): 1.0}
    assert readings.counts(registry_dir, "jobs_duration_seconds") == {("python", f"{HERE}.double", ""): 1.0}


def test_failure_is_counted_by_class_and_raised_as_it_is(registry_dir: Path) -> None:
    error = Refused("x")
    with pytest.raises(Refused) as caught:
        refuse(error)
    assert caught.value is error
    assert ended(registry_dir) == {("python", f"{HERE}.refuse", "", "failure"): 1.0}
    assert readings.values(registry_dir, "jobs_failures_total") == {("python", f"{HERE}.refuse", "", "Refused"): 1.0}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1)])
def test_interruption_is_a_failure(registry_dir: Path, error: BaseException) -> None:
    with pytest.raises(type(error)):
        refuse(error)
    assert sum(ended(registry_dir).values()) == 1.0
    readings.assert_durations_add_up(registry_dir)


def test_call_inside_another_timed_job_is_not_counted_again(registry_dir: Path) -> None:
    outer(1)
    assert ended(registry_dir) == {("python", f"{HERE}.outer", "", "success"): 1.0}


def test_call_inside_a_job_systems_execution_is_not_counted_again(registry_dir: Path) -> None:
    execution = recorder.default().started(Started(Job("rq", "f", "q"), "1"))
    token = running.set(execution)
    double(1)
    running.reset(token)
    assert ended(registry_dir) == {}


def test_function_knows_its_execution_and_nobody_after_it() -> None:
    assert tell() == f"{HERE}.tell"
    assert current_execution() is None


def test_execution_is_over_after_a_failure(registry_dir: Path) -> None:
    with pytest.raises(Refused):
        refuse(Refused())
    assert current_execution() is None
    assert readings.active(registry_dir) == {}


def test_ignored_function_runs_unrecorded(registry_dir: Path) -> None:
    settings.configure(dir=registry_dir, propagate_errors=True, ignore=[f"{HERE}.*"])
    assert double(3) == 6
    assert list(registry_dir.iterdir()) == []


def test_function_runs_when_nothing_can_be_recorded(registry_dir: Path) -> None:
    settings.configure(dir=registry_dir)
    registry_dir.chmod(0o777)
    assert double(3) == 6


def test_error_in_the_recorder_never_reaches_the_function(registry_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.configure(dir=registry_dir)

    def broken(*_: object) -> None:
        raise RuntimeError("ours")

    monkeypatch.setattr(recorder.Recorder, "started", broken)
    assert double(3) == 6
