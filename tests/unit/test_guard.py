from __future__ import annotations

import logging

import pytest

from jobmetrics import guard, runtime, settings
from jobmetrics.guard import guarded
from jobmetrics.log_throttle import ThrottledLog


class TimeLimit(Exception):
    """The exception of a job system, raised from a signal handler at any point of a job."""


@guarded("here")
def fails(error: BaseException) -> str:
    raise error


@guarded("here")
def works(value: str) -> str:
    """Returns its argument, or raises it."""
    return value


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    seconds = [1000.0]
    monkeypatch.setattr(runtime.state(guard.Errors), "log", ThrottledLog(lambda: seconds[0]))
    return seconds


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]


def test_a_guarded_function_returns_its_result() -> None:
    assert works("x") == "x"


def test_guarded_function_keeps_name_and_docstring() -> None:
    assert (works.__name__, works.__doc__) == ("works", "Returns its argument, or raises it.")


def test_an_error_is_suppressed() -> None:
    assert fails(ValueError("x")) is None


def test_errors_are_counted_by_place() -> None:
    fails(ValueError("x"))
    fails(KeyError("x"))
    guard.note("there", OSError("x"))
    assert guard.take_counts() == {"here": 2, "there": 1}


def test_counts_are_returned_once() -> None:
    fails(ValueError("x"))
    guard.take_counts()
    assert guard.take_counts() == {}


@pytest.mark.parametrize("error", [KeyboardInterrupt(), SystemExit(1), GeneratorExit()])
def test_exceptions_that_end_a_process_are_never_suppressed(error: BaseException) -> None:
    with pytest.raises(type(error)):
        fails(error)
    assert guard.take_counts() == {}


def test_an_error_is_raised_if_errors_propagate() -> None:
    settings.configure(propagate_errors=True)
    with pytest.raises(ValueError, match=r"^x$"):
        fails(ValueError("x"))
    assert guard.take_counts() == {}


def test_the_time_limit_of_the_job_passes_through() -> None:
    guard.let_through(TimeLimit)
    with pytest.raises(TimeLimit):
        fails(TimeLimit())
    assert guard.take_counts() == {}


def test_let_through_adds_to_what_passed_before() -> None:
    guard.let_through(TimeLimit)
    guard.let_through(KeyError)
    with pytest.raises(TimeLimit):
        fails(TimeLimit())


def test_let_through_twice_is_kept_once() -> None:
    guard.let_through(TimeLimit)
    once = runtime.state(guard.Errors).let_through
    guard.let_through(TimeLimit)
    assert runtime.state(guard.Errors).let_through == once


def test_error_is_logged_with_place_and_cause(caplog: pytest.LogCaptureFixture, now: list[float]) -> None:
    fails(ValueError("bad"))
    assert lines(caplog) == ["jobmetrics: error in here, the job is not affected: ValueError: bad"]


def test_one_place_is_logged_once_a_minute(caplog: pytest.LogCaptureFixture, now: list[float]) -> None:
    fails(ValueError("bad"))
    now[0] += 59.9
    fails(ValueError("bad"))
    assert len(lines(caplog)) == 1
    now[0] += 0.1
    fails(ValueError("bad"))
    assert len(lines(caplog)) == 2


def test_another_place_is_logged_separately(caplog: pytest.LogCaptureFixture, now: list[float]) -> None:
    fails(ValueError("bad"))
    guard.note("there", ValueError("bad"))
    assert len(lines(caplog)) == 2


def test_traceback_is_for_debugging_only(caplog: pytest.LogCaptureFixture, now: list[float]) -> None:
    caplog.set_level(logging.DEBUG, "jobmetrics")
    fails(ValueError("bad"))
    assert [record.levelname for record in caplog.records if record.exc_info] == ["DEBUG"]


def test_a_bad_environment_does_not_turn_a_log_line_into_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBMETRICS_MAX_SERIES", "bad")
    assert fails(ValueError("x")) is None
