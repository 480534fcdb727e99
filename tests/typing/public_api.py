"""What users' type checkers see: decorators leave types as they are, and wrong calls are errors.

An ignore that is not needed is an error of its own, so each one below proves that the call is refused.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Coroutine, Generator, Iterator
from typing import Any, TypeVar, overload

from typing_extensions import assert_type

from jobmetrics import (
    Batch,
    Counter,
    CurrentJob,
    Gauge,
    Histogram,
    add_items,
    current_job,
    duration,
    increment,
    integration,
    observe,
    refresh,
    set_gauge,
    stage,
    timed_job,
)
from jobmetrics.collector_api import Collector, CollectorOptions, Reading
from jobmetrics.families import JOBS_DURATION
from jobmetrics.testing import RecordedJobs, read_sample, record_jobs, temporary_registry

T = TypeVar("T")

# ------------------------------------------------------------------ timed_job


@timed_job
def bare(number: int, *, plus: float = 0.0) -> str:
    return str(number + plus)


@timed_job(name="report", target=2.0)
def with_options(number: int) -> list[int]:
    return [number]


@timed_job
async def coroutine(number: int) -> str:
    return str(number)


@timed_job
def generator(number: int) -> Generator[int, str, bytes]:
    yield number
    return b""


@timed_job
async def async_generator(number: int) -> AsyncGenerator[int, str]:
    yield number


@timed_job
def generic(value: T) -> list[T]:
    return [value]


@overload
def overloaded(value: int) -> int: ...
@overload
def overloaded(value: str) -> str: ...
@timed_job
def overloaded(value: int | str) -> int | str:
    return value


class Report:
    @timed_job
    def method(self, number: int) -> str:
        return str(number)

    @timed_job
    @classmethod
    def above_class(cls, number: int) -> Report:
        return cls()

    @classmethod
    @timed_job
    def below_class(cls, number: int) -> Report:
        return cls()

    @timed_job(target=1)
    @staticmethod
    def above_static(number: int) -> str:
        return str(number)

    @staticmethod
    @timed_job
    def below_static(number: int) -> str:
        return str(number)


class Task:
    """A job system's task: it is called as a function, and has methods."""

    def __call__(self, number: int) -> str:
        return str(number)

    def delay(self, number: int) -> None: ...


def calls(task: Task, report: Report) -> None:
    assert_type(bare(1, plus=0.5), str)
    assert_type(with_options(1), list[int])
    as_coroutine: Callable[[int], Coroutine[Any, Any, str]] = coroutine
    as_coroutine(1).close()
    assert_type(generator(1), Generator[int, str, bytes])
    assert_type(async_generator(1), AsyncGenerator[int, str])
    assert_type(generic(b""), list[bytes])
    assert_type(overloaded(1), int)
    assert_type(overloaded("1"), str)
    assert_type(report.method(1), str)
    assert_type(Report.above_class(1), Report)
    assert_type(Report.below_class(1), Report)
    assert_type(Report.above_static(1), str)
    assert_type(report.below_static(1), str)
    timed_job(task).delay(1)
    timed_job(target=2)(task).delay(1)
    as_callable: Callable[[int], list[int]] = with_options
    as_callable(1)


def refused(report: Report) -> None:
    bare("1")  # type: ignore[arg-type]
    bare(1, 2)  # type: ignore[call-arg]
    bare(1, plus="2")  # type: ignore[arg-type]
    with_options()  # type: ignore[call-arg]
    report.method("1")  # type: ignore[arg-type]
    Report.above_class("1")  # type: ignore[arg-type]
    overloaded(1.5)  # type: ignore[call-overload]
    timed_job(5)  # type: ignore[call-overload]
    timed_job(target="soon")  # type: ignore[call-overload]
    timed_job(bare, target=2.0)  # type: ignore[call-overload]


# ------------------------------------------------------------------ stage and duration


@stage("parse")
def parse(number: int) -> str:
    return str(number)


@duration("parse", table="orders")
async def aparse(number: int) -> str:
    return str(number)


async def blocks() -> None:
    with stage("a"), duration("b"):
        pass
    async with stage("a"), duration("b", table="orders"):
        pass
    assert_type(parse(1), str)
    assert_type(await aparse(1), str)
    parse("1")  # type: ignore[arg-type]
    stage(5)  # type: ignore[arg-type]


# ------------------------------------------------------------------ other functions


def inside() -> None:
    assert_type(current_job(), CurrentJob | None)
    add_items()
    add_items(2.5)
    increment("orders", shop="a")
    set_gauge("level", 1)
    observe("size_bytes", 2.5, table="orders")
    refresh()
    increment()  # type: ignore[call-arg]
    increment(name="orders")  # type: ignore[call-arg]
    set_gauge("level")  # type: ignore[call-arg]


def instruments() -> None:
    counter = Counter("rows", "Rows.", ["table"], unit="rows")
    counter.labels("orders").inc(2)
    counter.labels("orders").set(2)  # type: ignore[attr-defined]
    gauge = Gauge("level", "Level.", multiprocess_mode="max")
    gauge.set(2)
    histogram = Histogram("size", "Size.", buckets=(1, 2))
    with histogram.time():
        pass

    @histogram.time()
    def timed(number: int) -> str:
        return str(number)

    assert_type(timed(1), str)
    with Batch() as batch:
        batch.inc(counter.labels("orders"), 3)


def tests() -> Iterator[RecordedJobs]:
    with temporary_registry(max_series=100) as directory:
        assert_type(directory, str)
    assert_type(read_sample("rows_total", {"table": "orders"}), float | None)
    with record_jobs() as recorded:
        yield recorded


# ------------------------------------------------------------------ a job system


class Queues:
    name = "spool"
    broker = "default"

    def collect(self) -> list[Reading]:
        return []

    def close(self) -> None: ...


def collectors(options: CollectorOptions) -> Iterator[Collector]:
    assert_type(options.timeout, float)
    yield Queues()


def checks(recorded: integration.Recorded) -> Iterator[integration.Finding]:
    yield integration.Finding(integration.NOTE, f"{sum(recorded(JOBS_DURATION).values())} jobs")


def a_job_system() -> None:
    folder = integration.Option("spool_folder", "DIR", "Folder to read.", repeatable=True)
    integration.System("spool", options=[folder], collectors=collectors, checks=checks)
    integration.System("spool", "Spool")  # type: ignore[call-arg]
    assert_type(integration.find_systems().systems, tuple[integration.System, ...])
    assert_type(integration.known_names(), tuple[str, ...])
    integration.worker_gauges("spool", 2, {"mails": 1})


@integration.guarded("spool start")
def started(name: str) -> int:
    recorder = integration.current_recorder()
    execution = recorder.started(integration.Started(integration.Job("spool", name, "mails"), "1"))
    if execution is not None:
        recorder.ended(execution, integration.Ended(integration.FAILURE, ValueError()))
    return 1


def a_hook() -> None:
    assert_type(started("resize"), int | None)
    started(1)  # type: ignore[arg-type]
