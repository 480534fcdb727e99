from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from jobmetrics import current_job, recorder, settings, timed_job
from jobmetrics.errors import InstrumentError
from jobmetrics.events import Ended, Job, Started
from jobmetrics.job_context import Execution, current_execution, running
from jobmetrics.settings import Settings
from jobmetrics.testing import CountingClock, read_sample, temporary_registry
from tests.support import readings
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
def type_now_of_function() -> str | None:
    execution = current_execution()
    return None if execution is None else execution.job.job_type


@pytest.fixture(autouse=True)
def recorded(active_settings: Settings) -> Iterator[None]:
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


def test_a_failure_is_counted_by_class_and_raised_unchanged(registry_dir: Path) -> None:
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


def test_the_current_execution_is_set_only_during_the_call() -> None:
    assert type_now_of_function() == f"{HERE}.type_now_of_function"
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
        raise RuntimeError("jobmetrics")

    monkeypatch.setattr(recorder.Recorder, "started", broken)
    assert double(3) == 6


# ------------------------------------------------------------------ options


@timed_job(name="nightly.report", target=2.0)
def report(clock: CountingClock, seconds: float) -> None:
    clock.advance(seconds)


def test_name_is_the_job_type(registry_dir: Path) -> None:
    report(CountingClock(), 0.0)
    assert ended(registry_dir) == {("python", "nightly.report", "", "success"): 1.0}


@pytest.mark.parametrize(("seconds", "within"), [(1.0, 1.0), (2.0, 1.0), (2.5, 0.0)])
def test_success_within_its_target_is_counted(seconds: float, within: float) -> None:
    clock = CountingClock(100.0)
    with temporary_registry(clock):
        report(clock, seconds)
        assert read_sample("jobs_within_target_total", labels("nightly.report")) == within
        assert read_sample("jobs_target_duration_seconds", labels("nightly.report")) == 2.0
        assert read_sample("jobs_duration_seconds_sum", labels("nightly.report")) == seconds


def test_failure_is_never_within_its_target() -> None:
    @timed_job(target=5)
    def fail() -> None:
        raise Refused

    with temporary_registry():
        with pytest.raises(Refused):
            fail()
        name = f"{HERE}.test_failure_is_never_within_its_target.<locals>.fail"
        assert read_sample("jobs_within_target_total", labels(name)) == 0.0


@pytest.mark.parametrize("target", [0, -1, float("inf"), float("nan"), "2", True])
def test_bad_target_is_refused_at_definition(target: Any) -> None:
    with pytest.raises(InstrumentError, match=r"^target=.* is not allowed for timed_job; it takes seconds above 0$"):
        timed_job(target=target)


@pytest.mark.parametrize("name", ["", 5])
def test_bad_name_is_refused_at_definition(name: Any) -> None:
    with pytest.raises(InstrumentError, match=r"^name=.* is not allowed for timed_job; it takes a non-empty string$"):
        timed_job(name=name)


def test_an_object_that_is_not_a_function_is_refused_at_definition() -> None:
    with pytest.raises(InstrumentError, match=r"^timed_job takes a function, not 'report'$"):
        timed_job("report")  # type: ignore[call-overload]


def labels(job_type: str, system: str = "python", queue_name: str = "") -> dict[str, str]:
    return {"system": system, "job_type": job_type, "queue_name": queue_name}


# ------------------------------------------------------------------ processor time


def test_processor_time_of_a_function_is_that_of_its_thread(
    registry_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recorder.default(), "thread_cpu", CountingClock(50.0, step=0.25))
    double(1)
    assert readings.values(registry_dir, "jobs_cpu_seconds_total") == {("python", f"{HERE}.double", ""): 0.25}


def test_processor_time_among_greenlets_is_not_recorded(registry_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recorder.default(), "_greenlets", True)
    double(1)
    assert list(Sequence([1]).items()) == [1]
    assert readings.values(registry_dir, "jobs_cpu_seconds_total") == {}
    assert sum(ended(registry_dir).values()) == 2.0


def test_processor_time_of_coroutines_covers_only_their_steps(
    registry_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = CountingClock(50.0)
    monkeypatch.setattr(recorder.default(), "thread_cpu", clock)

    @timed_job(name="coroutine")
    async def compute(seconds: float, turns: int) -> None:
        for _ in range(turns):
            clock.advance(seconds)
            await asyncio.sleep(0)

    async def both() -> None:
        await asyncio.gather(compute(1.0, 2), compute(10.0, 2))

    asyncio.run(both())
    assert readings.values(registry_dir, "jobs_cpu_seconds_total") == {("python", "coroutine", ""): 22.0}


# ------------------------------------------------------------------ coroutine functions


@timed_job
async def fetch(number: int, error: BaseException | None = None) -> int:
    """Asynchronously."""
    await asyncio.sleep(0)
    if error is not None:
        raise error
    return number + 1


@timed_job
async def fetch_more(number: int) -> tuple[int, str | None]:
    return await fetch(number), type_now()


def type_now() -> str | None:
    job = current_job()
    return None if job is None else job.job_type


def test_coroutine_function_stays_one() -> None:
    assert inspect.iscoroutinefunction(fetch)
    assert fetch.__doc__ == "Asynchronously."
    assert asyncio.run(fetch(1)) == 2


def test_coroutine_is_counted_once_with_the_coroutines_it_awaits(registry_dir: Path) -> None:
    assert asyncio.run(fetch_more(1)) == (2, f"{HERE}.fetch_more")
    assert ended(registry_dir) == {("python", f"{HERE}.fetch_more", "", "success"): 1.0}


def test_a_coroutine_that_fails_is_a_failure_and_raises_its_exception(registry_dir: Path) -> None:
    error = Refused()
    with pytest.raises(Refused) as caught:
        asyncio.run(fetch(1, error))
    assert caught.value is error
    assert ended(registry_dir) == {("python", f"{HERE}.fetch", "", "failure"): 1.0}


def test_coroutine_that_is_never_awaited_is_not_counted(registry_dir: Path) -> None:
    fetch(1).close()
    assert list(registry_dir.iterdir()) == []


def test_cancelled_coroutine_is_a_failure_and_handles_its_cancellation(registry_dir: Path) -> None:
    handled = []

    @timed_job(name="waits")
    async def wait() -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            await asyncio.sleep(0)
            handled.append(type_now())
            raise

    async def cancel() -> None:
        task = asyncio.create_task(wait())
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancel())
    assert handled == ["waits"]
    assert readings.values(registry_dir, "jobs_failures_total") == {("python", "waits", "", "CancelledError"): 1.0}


def test_simultaneous_tasks_are_separate_jobs(registry_dir: Path) -> None:
    async def both() -> None:
        assert sum(await asyncio.gather(fetch(1), fetch(2))) == 5
        assert current_execution() is None

    asyncio.run(both())
    assert ended(registry_dir) == {("python", f"{HERE}.fetch", "", "success"): 2.0}


# ------------------------------------------------------------------ generator functions


class Sequence:
    def __init__(self, numbers: list[int]) -> None:
        self.numbers = numbers
        self.seen: list[object] = []

    @timed_job
    def items(self) -> Generator[int, str, str]:
        try:
            for number in self.numbers:
                self.seen.append(type_now())
                try:
                    self.seen.append((yield number))
                except KeyError as error:
                    self.seen.append(error)
        finally:
            self.seen.append("closed")
        return "end"

    @timed_job
    async def aitems(self) -> AsyncGenerator[int, str]:
        try:
            for number in self.numbers:
                await asyncio.sleep(0)
                self.seen.append(type_now())
                try:
                    self.seen.append((yield number))
                except KeyError as error:
                    self.seen.append(error)
        finally:
            await asyncio.sleep(0)
            self.seen.append("closed")


ITEMS = f"{HERE}.Sequence.items"
AITEMS = f"{HERE}.Sequence.aitems"


def test_generator_function_stays_one() -> None:
    assert inspect.isgeneratorfunction(Sequence.items)
    assert inspect.isasyncgenfunction(Sequence.aitems)


def test_generator_is_the_running_job_only_within_its_steps(registry_dir: Path) -> None:
    sequence = Sequence([1, 2])
    between = []
    for _ in sequence.items():
        between.append(type_now())
        assert sum(readings.active(registry_dir).values()) == 1
    assert between == [None, None]
    assert sequence.seen == [ITEMS, None, ITEMS, None, "closed"]
    assert ended(registry_dir) == {("python", ITEMS, "", "success"): 1.0}


def test_a_generator_receives_sent_values_and_exceptions_and_returns() -> None:
    sequence = Sequence([1, 2, 3])
    generator = sequence.items()
    error = KeyError()
    assert (next(generator), generator.send("a"), generator.throw(error)) == (1, 2, 3)
    with pytest.raises(StopIteration) as stop:
        next(generator)
    assert stop.value.value == "end"
    assert sequence.seen == [ITEMS, "a", ITEMS, error, ITEMS, None, "closed"]


def test_generator_that_is_closed_early_is_a_success(registry_dir: Path) -> None:
    sequence = Sequence([1, 2])
    generator = sequence.items()
    next(generator)
    generator.close()
    assert sequence.seen == [ITEMS, "closed"]
    assert ended(registry_dir) == {("python", ITEMS, "", "success"): 1.0}


def test_generator_that_raises_is_a_failure(registry_dir: Path) -> None:
    generator = Sequence([1]).items()
    next(generator)
    with pytest.raises(Refused):
        generator.throw(Refused())
    assert ended(registry_dir) == {("python", ITEMS, "", "failure"): 1.0}


def test_generator_that_is_never_begun_is_not_counted(registry_dir: Path) -> None:
    Sequence([1]).items().close()
    assert list(registry_dir.iterdir()) == []


def test_generators_read_in_turn_are_separate_jobs(registry_dir: Path) -> None:
    assert list(zip(Sequence([1, 2]).items(), Sequence([3, 4]).items(), strict=True)) == [(1, 3), (2, 4)]
    assert sum(ended(registry_dir).values()) == 2.0


def test_generator_within_a_job_is_not_counted(registry_dir: Path) -> None:
    @timed_job(name="reads")
    def read() -> list[int]:
        return list(Sequence([1]).items())

    assert read() == [1]
    assert ended(registry_dir) == {("python", "reads", "", "success"): 1.0}


def test_async_generator_is_the_running_job_only_within_its_steps(registry_dir: Path) -> None:
    sequence = Sequence([1, 2])

    async def read() -> list[object]:
        return [(item, type_now()) async for item in sequence.aitems()]

    assert asyncio.run(read()) == [(1, None), (2, None)]
    assert sequence.seen == [AITEMS, None, AITEMS, None, "closed"]
    assert ended(registry_dir) == {("python", AITEMS, "", "success"): 1.0}


def test_an_async_generator_receives_sent_values_and_exceptions() -> None:
    sequence = Sequence([1, 2, 3])
    error = KeyError()

    async def drive() -> tuple[int, int, int]:
        generator = sequence.aitems()
        try:
            return await generator.__anext__(), await generator.asend("a"), await generator.athrow(error)
        finally:
            await generator.aclose()

    assert asyncio.run(drive()) == (1, 2, 3)
    assert sequence.seen == [AITEMS, "a", AITEMS, error, AITEMS, "closed"]


def test_async_generator_that_is_closed_early_is_a_success(registry_dir: Path) -> None:
    async def first() -> None:
        generator = Sequence([1, 2]).aitems()
        await generator.__anext__()
        await generator.aclose()

    asyncio.run(first())
    assert ended(registry_dir) == {("python", AITEMS, "", "success"): 1.0}


def test_async_generator_that_raises_is_a_failure(registry_dir: Path) -> None:
    async def fail() -> None:
        generator = Sequence([1]).aitems()
        await generator.__anext__()
        with pytest.raises(Refused):
            await generator.athrow(Refused())

    asyncio.run(fail())
    assert ended(registry_dir) == {("python", AITEMS, "", "failure"): 1.0}


def test_async_generator_within_a_job_is_not_counted(registry_dir: Path) -> None:
    @timed_job(name="reads")
    async def read() -> list[int]:
        return [item async for item in Sequence([1]).aitems()]

    assert asyncio.run(read()) == [1]
    assert ended(registry_dir) == {("python", "reads", "", "success"): 1.0}


# ------------------------------------------------------------------ methods and callables


class Report:
    @timed_job
    def plain(self) -> Report:
        return self

    @classmethod
    @timed_job
    def below(cls) -> type[Report]:
        return cls

    @timed_job
    @classmethod
    def above(cls) -> type[Report]:
        return cls

    @staticmethod
    @timed_job
    def static_below(number: int) -> int:
        return number

    @timed_job
    @staticmethod
    def static_above(number: int) -> int:
        return number

    def __call__(self, number: int) -> int:
        return number


class Weekly(Report):
    pass


def test_methods_are_bound_as_usual(registry_dir: Path) -> None:
    weekly = Weekly()
    assert weekly.plain() is weekly
    assert (Weekly.below(), Weekly.above(), weekly.above()) == (Weekly, Weekly, Weekly)
    assert (Weekly.static_below(1), weekly.static_above(2)) == (1, 2)
    assert ended(registry_dir) == {
        ("python", f"{HERE}.Report.{name}", "", "success"): count
        for name, count in (("plain", 1), ("below", 1), ("above", 2), ("static_below", 1), ("static_above", 1))
    }


@pytest.mark.parametrize(
    ("function", "job_type"),
    [(functools.partial(int, base=2), "builtins.int"), (Report(), f"{HERE}.Report")],
)
def test_callables_without_a_name_have_that_of_their_function_or_class(
    registry_dir: Path, function: Callable[[str], object], job_type: str
) -> None:
    assert timed_job(function)("11") in (3, "11")
    assert ended(registry_dir) == {("python", job_type, "", "success"): 1.0}


def test_the_signature_is_kept_for_readers_that_ignore_wrapped() -> None:
    assert inspect.getfullargspec(double).kwonlyargs == ["plus"]
    assert inspect.getfullargspec(Report.plain).args == ["self"]


# ------------------------------------------------------------------ inside a job system's job


@contextmanager
def job(job_type: str, system: str = "rq") -> Iterator[Execution]:
    """A job of a job system, run in this process."""
    execution = recorder.default().started(Started(Job(system, job_type, "q"), "1"))
    assert execution is not None
    token = running.set(execution)
    try:
        yield execution
    finally:
        running.reset(token)
        recorder.default().ended(execution, Ended("success"))


@timed_job(target=2.5)
def resize() -> None:
    pass


@timed_job(target=2.5)
async def aresize() -> None:
    pass


def test_the_function_of_a_job_sets_its_target(registry_dir: Path) -> None:
    with job(f"{HERE}.resize") as execution:
        resize()
        assert execution.target == 2.5
    assert readings.values(registry_dir, "jobs_target_duration_seconds") == {("rq", f"{HERE}.resize", "q"): 2.5}
    assert readings.values(registry_dir, "jobs_within_target_total") == {("rq", f"{HERE}.resize", "q"): 1.0}
    assert ended(registry_dir) == {("rq", f"{HERE}.resize", "q", "success"): 1.0}


def test_the_coroutine_function_of_a_job_sets_its_target() -> None:
    with job(f"{HERE}.aresize") as execution:
        asyncio.run(aresize())
        assert execution.target == 2.5


def test_the_function_called_by_the_job_system_is_the_jobs_under_any_name() -> None:
    code = compile("def perform(function): function()", "job.py", "exec")
    namespace: dict[str, Any] = {"__name__": "rq.job"}
    exec(code, namespace)  # a caller in a module of this name
    with job("thumbnails") as execution:
        namespace["perform"](resize)
        assert execution.target == 2.5


@pytest.mark.parametrize("system", ["rq", "python"])
def test_helper_within_a_job_leaves_its_target_alone(registry_dir: Path, system: str) -> None:
    with job("thumbnails", system) as execution:
        resize()
        asyncio.run(aresize())
        assert execution.target is None
    assert readings.values(registry_dir, "jobs_target_duration_seconds") == {}


class LazyTask:
    """Like Celery's task proxies: it has a name once its app is ready."""

    name: str

    def apply_async(self) -> None:
        raise AssertionError


def test_a_task_is_returned_unchanged_and_its_job_gets_the_target() -> None:
    task = LazyTask()
    assert timed_job(target=4.0)(task) is task  # type: ignore[type-var]
    with job("early", "celery") as execution:
        assert execution.target is None
    task.name = "app.resize"
    with job("app.resize", "celery") as execution:
        assert execution.target == 4.0


def test_a_task_that_outlives_a_job_is_not_in_it(registry_dir: Path) -> None:
    with job("spawns"):
        context = contextvars.copy_context()
    context.run(double, 1)
    assert ended(registry_dir) == {
        ("rq", "spawns", "q", "success"): 1.0,
        ("python", f"{HERE}.double", "", "success"): 1.0,
    }
