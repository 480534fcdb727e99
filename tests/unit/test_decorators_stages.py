from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from jobmetrics import add_items, current_job, guard, items, settings, stage, timed_job
from jobmetrics.errors import InstrumentError
from jobmetrics.testing import CountingClock, read_sample, temporary_registry

JOB = {"system": "python", "job_type": "imports", "queue_name": ""}


@pytest.fixture
def seconds() -> Iterator[CountingClock]:
    clock = CountingClock(100.0)
    with temporary_registry(clock):
        yield clock


def observed(name: str) -> tuple[float | None, float | None]:
    """Count and total seconds of a stage."""
    labels = {**JOB, "stage": name}
    return (
        read_sample("jobs_stage_duration_seconds_count", labels),
        read_sample("jobs_stage_duration_seconds_sum", labels),
    )


def test_stage_is_timed(seconds: CountingClock) -> None:
    @timed_job(name="imports")
    def run() -> None:
        with stage("download"):
            seconds.advance(1.5)
        seconds.advance(10.0)
        with stage("parse"):
            seconds.advance(2.0)

    run()
    assert (observed("download"), observed("parse")) == ((1.0, 1.5), (1.0, 2.0))


def test_stage_that_fails_is_timed_and_raises(seconds: CountingClock) -> None:
    @timed_job(name="imports")
    def run() -> None:
        with stage("download"):
            seconds.advance(1.5)
            raise KeyError

    with pytest.raises(KeyError):
        run()
    assert observed("download") == (1.0, 1.5)


def test_nested_stages_are_each_timed(seconds: CountingClock) -> None:
    both = stage("again")

    @timed_job(name="imports")
    def run() -> None:
        with both:
            seconds.advance(1.0)
            with both:
                seconds.advance(2.0)

    run()
    assert observed("again") == (2.0, 5.0)


def test_stage_decorates_a_function(seconds: CountingClock) -> None:
    @stage("parse")
    def parse(number: int, *, plus: int = 0) -> int:
        """Parses."""
        seconds.advance(0.5)
        return number + plus

    @timed_job(name="imports")
    def run() -> int:
        return parse(1, plus=2) + parse(3)

    assert (run(), parse.__name__, parse.__doc__) == (6, "parse", "Parses.")
    assert observed("parse") == (2.0, 1.0)


def test_stage_works_in_coroutines(seconds: CountingClock) -> None:
    @stage("parse")
    async def parse(turns: int) -> None:
        for _ in range(turns):
            await asyncio.sleep(0)
        seconds.advance(0.5)

    @timed_job(name="imports")
    async def run() -> None:
        async with stage("download"):
            await asyncio.sleep(0)
            seconds.advance(1.0)
        await asyncio.gather(parse(1), parse(3))  # concurrently

    asyncio.run(run())
    assert observed("download") == (1.0, 1.0)
    assert observed("parse") == (2.0, 1.5)


def test_stage_refuses_generator_functions() -> None:
    with pytest.raises(InstrumentError, match=r"^stage does not decorate the generator function .*: use `with` in it$"):

        @stage("rows")
        def rows() -> Iterator[int]:
            yield 1


def test_long_stage_name_is_cut(seconds: CountingClock) -> None:
    @timed_job(name="imports")
    def run() -> None:
        with stage("x" * 300):
            pass

    run()
    assert observed("x" * 255 + "…") == (1.0, 0.0)


def test_items_add_up(seconds: CountingClock) -> None:
    @timed_job(name="imports")
    def run() -> None:
        add_items()
        add_items(41)
        add_items(-5)

    run()
    assert read_sample("jobs_items_processed_total", JOB) == 42.0


def test_nothing_is_recorded_outside_a_job(seconds: CountingClock) -> None:
    with stage("download"):
        add_items(3)
    assert observed("download") == (None, None)
    assert current_job() is None


def test_errors_of_jobmetrics_are_suppressed(seconds: CountingClock, monkeypatch: pytest.MonkeyPatch) -> None:
    settings.configure(propagate_errors=False, enabled=False)

    class Unprintable:
        def __str__(self) -> str:
            raise RuntimeError

    @timed_job(name="imports")
    def run() -> str:
        with stage(Unprintable()):  # type: ignore[arg-type]
            add_items("many")  # type: ignore[arg-type]
        return "done"

    assert run() == "done"
    assert guard.take_counts() == {"stage end": 1}


def test_the_earlier_name_of_add_items_still_works() -> None:
    assert items is add_items
