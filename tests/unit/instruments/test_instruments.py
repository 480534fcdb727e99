from __future__ import annotations

import asyncio
import contextlib
import functools
import gc
import inspect
import math
import os
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as examples
from hypothesis import strategies as st

from jobmetrics import guard, instruments, settings
from jobmetrics.errors import InstrumentError
from jobmetrics.families import BUILT_IN, OVERFLOW, Family
from jobmetrics.instruments import Batch, Counter, Gauge, Histogram, bound, label_value
from jobmetrics.instruments.bound import LARGEST
from jobmetrics.instruments.definition import Labelled
from jobmetrics.registry.cells import BoundSeries
from jobmetrics.registry.write import current
from jobmetrics.registry.write.writer import MAX_DROPPING, Writer
from jobmetrics.settings import DEFAULT_BUCKETS, Settings
from tests.support import readings
from tests.unit.doubles import FakeClock, die

MODES = ["livesum", "sum", "max", "min", "mostrecent"]

finite = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e300, max_value=1e300)
numbers = (
    finite
    | st.integers(-(10**400), 10**400)
    | st.booleans()
    | st.decimals()
    | st.fractions()
    | st.floats()
    | st.just(Decimal("sNaN"))
)


class Unconvertible:
    """A number type that raises during conversion."""

    def __float__(self) -> float:
        raise RuntimeError("no single value")


class TimeLimit(Exception):
    """The exception of a job system, raised from a signal handler at any point of a job."""


class Interrupted:
    """A number. The job's time limit interrupts its conversion."""

    def __float__(self) -> float:
        raise TimeLimit


class Adding(float):
    """A float with its own addition: stored in a cell, it could lose updates."""

    def __radd__(self, other: object) -> float:
        raise AssertionError("a user type did the addition in a cell")

    __add__ = __radd__


NO_NUMBERS: list[Any] = [
    math.nan, math.inf, -math.inf, 10**400, Decimal("sNaN"), Decimal("Infinity"), Fraction(10**400),
    Unconvertible(), None, "five", object(), [1.0], 1j,
]  # fmt: skip


def shown(value: object) -> str:
    """The value without its address, which differs between test processes."""
    return repr(value).partition(" at 0x")[0]


@pytest.fixture(autouse=True)
def recorded(active_settings: Settings) -> Iterator[None]:
    yield
    die(current.writer())


def value(registry_dir: Path, name: str, *labels: str) -> float:
    return readings.samples(registry_dir, name)[labels].value


def dropped() -> dict[str, int]:
    """Updates dropped since the last call, by reason."""
    found: dict[str, int] = {}
    for (reason, _), count in current.writer().take_dropped_updates().items():
        found[reason] = found.get(reason, 0) + count
    return found


def as_float(number: Any) -> float:
    """The number as a float; NaN if it is not a number."""
    try:
        return float(number)
    except (OverflowError, ValueError):
        return math.nan


# ------------------------------------------------------------------ counters


def test_counter_counts(registry_dir: Path) -> None:
    counter = Counter("c", "Things.")
    counter.inc()
    counter.inc(2.5)
    assert value(registry_dir, "c_total") == 3.5


def test_counter_accepts_and_ignores_an_exemplar(registry_dir: Path) -> None:
    Counter("c", "Things.").inc(2, {"trace_id": "x"})
    assert value(registry_dir, "c_total") == 2.0


@pytest.mark.parametrize("amount", [1, True, Decimal("0.5"), Fraction(1, 4), 0, -0.0, Adding(2.5)])
def test_counter_accepts_any_number(registry_dir: Path, amount: Any) -> None:
    counter = Counter("c", "Things.")
    counter.inc(amount)
    counter.inc(amount)
    assert value(registry_dir, "c_total") == 2 * float(amount)


@pytest.mark.parametrize("amount", [amount for amount in NO_NUMBERS if repr(amount) != "-inf"], ids=shown)
def test_counter_drops_and_counts_a_value_that_is_not_a_number(registry_dir: Path, amount: Any) -> None:
    counter = Counter("c", "Things.")
    counter.inc()
    counter.inc(amount)
    assert value(registry_dir, "c_total") == 1.0
    assert dropped() == {"not finite": 1}


@pytest.mark.parametrize("amount", [-1, -0.1, -math.inf, Decimal(-1)])
def test_counter_drops_and_counts_a_negative_value(registry_dir: Path, amount: Any) -> None:
    counter = Counter("c", "Things.")
    counter.inc()
    counter.inc(amount)
    assert value(registry_dir, "c_total") == 1.0
    assert dropped() == {"negative": 1}


@examples(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(amount=numbers)
def test_no_number_makes_a_counter_raise_fall_or_lose_updates(registry_dir: Path, amount: Any) -> None:
    counter = Counter("c", "Things.")
    counter.inc(0.0)
    before = value(registry_dir, "c_total")
    counter.inc(amount)
    number = as_float(amount)
    lost = sum(dropped().values())
    if 0.0 <= number <= LARGEST:
        assert (value(registry_dir, "c_total"), lost) == (before + number, 0)
    else:
        assert (value(registry_dir, "c_total"), lost) == (before, 1)


def test_numbers_that_could_make_a_sum_infinite_are_dropped(registry_dir: Path) -> None:
    counter, histogram = Counter("c", "Things."), Histogram("h", "Sizes.", buckets=(1.0,))
    counter.inc(1.0)
    counter.inc(LARGEST * 1.1)
    histogram.observe(-LARGEST * 1.1)
    assert value(registry_dir, "c_total") == 1.0
    assert dropped() == {"too large": 2}


def test_time_limit_during_a_conversion_reaches_the_job() -> None:
    guard.let_through(TimeLimit)
    with pytest.raises(TimeLimit):
        Counter("c", "Things.").inc(Interrupted())  # type: ignore[arg-type]


def test_counted_exceptions_pass_through(registry_dir: Path) -> None:
    counter = Counter("c", "Things.")
    with pytest.raises(KeyError), counter.count_exceptions():
        raise KeyError
    with counter.count_exceptions():
        pass
    assert value(registry_dir, "c_total") == 1.0


def test_only_the_named_exceptions_are_counted(registry_dir: Path) -> None:
    counter = Counter("c", "Things.")
    counter.inc(0)
    with pytest.raises(KeyError), counter.count_exceptions((ValueError, OSError)):
        raise KeyError
    assert value(registry_dir, "c_total") == 0.0


def test_counting_decorator_counts_each_call(registry_dir: Path) -> None:
    counter = Counter("c", "Things.", ["kind"])

    @counter.labels("a").count_exceptions()
    def fail() -> None:
        raise ValueError("x")

    for _ in range(2):
        with pytest.raises(ValueError, match="x"):
            fail()
    assert value(registry_dir, "c_total", "a") == 2.0


# ------------------------------------------------------------------ gauges


@pytest.mark.parametrize("mode", ["livesum", "sum", "max", "min"])
def test_gauge_goes_up_and_down(registry_dir: Path, mode: str) -> None:
    gauge = Gauge("g", "Things.", multiprocess_mode=mode)
    gauge.set(10)
    gauge.inc(5)
    gauge.dec(Decimal("2.5"))  # type: ignore[arg-type]
    gauge.dec()
    assert value(registry_dir, "g") == 11.5


@pytest.mark.parametrize(("mode", "expected"), [("max", 3.0), ("min", 3.0), ("mostrecent", 3.0)])
def test_gauge_keeps_the_value_of_its_mode(registry_dir: Path, mode: str, expected: float) -> None:
    gauge = Gauge("g", "Things.", multiprocess_mode=mode)
    for number in (5, -2, 3):
        gauge.set(number)
    assert value(registry_dir, "g") == expected


def test_most_recent_gauge_refuses_inc() -> None:
    with pytest.raises(InstrumentError, match=r"^g has the mode mostrecent, which only takes set\(\)$"):
        Gauge("g", "Things.", multiprocess_mode="mostrecent").inc()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("number", NO_NUMBERS[1:], ids=shown)
def test_gauge_drops_and_counts_a_value_that_is_not_a_number(registry_dir: Path, mode: str, number: Any) -> None:
    gauge = Gauge("g", "Things.", multiprocess_mode=mode)
    gauge.set(4)
    gauge.set(number)
    assert value(registry_dir, "g") == 4.0
    assert dropped() == {"not finite": 1}


@pytest.mark.parametrize("mode", ["livesum", "sum", "max", "min"])
@pytest.mark.parametrize("number", NO_NUMBERS[1:], ids=shown)
def test_gauge_adds_only_numbers(registry_dir: Path, mode: str, number: Any) -> None:
    gauge = Gauge("g", "Things.", multiprocess_mode=mode)
    gauge.set(4)
    gauge.inc(number)
    gauge.dec(number)
    assert value(registry_dir, "g") == 4.0
    assert dropped() == {"not finite": 2}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("nan", [math.nan, Decimal("NaN")], ids=repr)
def test_a_gauge_set_to_nan_is_nan_until_it_is_set(registry_dir: Path, mode: str, nan: Any) -> None:
    gauge = Gauge("g", "Things.", multiprocess_mode=mode)
    for number in (4.0, nan, 6.0):
        gauge.set(number)
        assert value(registry_dir, "g") == pytest.approx(float(number), nan_ok=True)
    assert dropped() == {}


@pytest.mark.parametrize("mode", ["livesum", "sum", "max", "min"])
def test_adding_nan_makes_a_gauge_nan(registry_dir: Path, mode: str) -> None:
    gauge = Gauge("g", "Things.", multiprocess_mode=mode)
    gauge.inc(math.nan)
    gauge.inc(1)
    assert math.isnan(value(registry_dir, "g"))
    assert dropped() == {}


def test_nan_of_an_ended_process_does_not_affect_the_next_ones(registry_dir: Path, active_settings: Settings) -> None:
    Gauge("g", "Things.", multiprocess_mode="sum").set(math.nan)
    die(current.writer())
    successor = Writer(active_settings)
    instruments.BoundSumGauge(successor, Family("g", "gauge", "Things."), ()).inc(3)
    assert value(registry_dir, "g") == 3.0
    die(successor)


def test_dropped_updates_are_counted_by_metric() -> None:
    Counter("c", "Things.").inc(-1)
    Histogram("h", "Sizes.").observe(math.nan)
    Histogram("h", "Sizes.").observe(math.nan)
    assert current.writer().take_dropped_updates() == {("negative", "c_total"): 1, ("not finite", "h"): 2}


def test_the_number_of_names_of_dropped_updates_is_limited() -> None:
    for number in range(MAX_DROPPING + 5):
        Counter(f"c{number}", "Things.").inc(-1)
    counts = current.writer().take_dropped_updates()
    assert (len(counts), counts["negative", OVERFLOW]) == (MAX_DROPPING + 1, 5)


@pytest.mark.parametrize("mode", ["all", "liveall", "livemax", "pid", ""])
def test_other_modes_are_refused_with_the_alternatives(mode: str) -> None:
    expected = f"multiprocess_mode={mode!r} is not allowed for g; it takes livesum, sum, max, min, mostrecent"
    with pytest.raises(InstrumentError) as caught:
        Gauge("g", "Things.", multiprocess_mode=mode)
    assert str(caught.value) == expected


def test_gauge_is_set_to_the_current_time(registry_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_700_000_000.5)
    Gauge("g", "Things.").set_to_current_time()
    assert value(registry_dir, "g") == 1_700_000_000.5


def test_progress_is_tracked_while_it_runs_and_after_an_error(registry_dir: Path) -> None:
    gauge = Gauge("g", "Things.", ["t"])
    within = []

    @gauge.labels("a").track_inprogress()
    def fail() -> None:
        within.append(value(registry_dir, "g", "a"))
        raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert (within, value(registry_dir, "g", "a")) == ([1.0], 0.0)


def test_set_on_a_sum_gauge_adds_to_the_values_of_ended_processes(
    registry_dir: Path, active_settings: Settings
) -> None:
    Gauge("g", "Things.", multiprocess_mode="sum").set(5)
    die(current.writer())
    successor = Writer(active_settings)
    share = instruments.BoundSumGauge(successor, Family("g", "gauge", "Things."), ())
    share.set(3)
    share.set(4)
    assert value(registry_dir, "g") == 9.0
    die(successor)


def test_two_definitions_of_a_sum_gauge_have_one_share(registry_dir: Path, active_settings: Settings) -> None:
    """A reloaded module defines it again: the last set wins, with either definition."""
    Gauge("g", "Things.", multiprocess_mode="sum").set(7)
    die(current.writer())
    settings.configure(dir=registry_dir, propagate_errors=True)  # configuring makes another writer
    one, other = (Gauge("g", "Things.", multiprocess_mode="sum") for _ in range(2))
    one.set(5)
    other.set(3)
    after_set = value(registry_dir, "g")
    one.inc(2)
    other.dec(1)
    after_added = value(registry_dir, "g")
    one.set(1)
    assert (after_set, after_added, value(registry_dir, "g")) == (10.0, 11.0, 8.0)


def test_sum_gauge_that_is_added_to_first_keeps_its_share_apart(registry_dir: Path, active_settings: Settings) -> None:
    """The series has its cell from before the fork; the child's lease is for the slot of the previous child."""
    gauge = Gauge("g", "Things.", multiprocess_mode="sum")
    gauge.set(1)
    for updates in ((7,), (2, 3)):
        child = os.fork()
        if child == 0:
            for number in updates:
                gauge.inc(number) if number == 2 else gauge.set(number)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    assert value(registry_dir, "g") == 1.0 + 7.0 + 3.0
    die(current.writer())


def test_sum_gauge_has_one_share_in_all_slots_of_its_process(registry_dir: Path, active_settings: Settings) -> None:
    gauge = Gauge("g", "Things.", multiprocess_mode="sum")
    gauge.set(6)
    writer = current.writer()
    for capacity in (100, 1_000):  # each needs a longer journal, and so another slot
        writer.describe("rq", "worker", capacity)
        gauge.set(7)
        assert value(registry_dir, "g") == 7.0
        gauge.inc(1)
        assert value(registry_dir, "g") == 8.0
    assert len(list(registry_dir.glob("slot-*"))) == 3
    die(writer)


# ------------------------------------------------------------------ histograms


def test_histogram_counts_by_size_upper_bounds_included(registry_dir: Path) -> None:
    histogram = Histogram("h", "Sizes.", buckets=(1, 2, 4))
    for amount in (0, 1, 1.5, 2, 4, 4.5):
        histogram.observe(amount)
    sample = readings.samples(registry_dir, "h")[()]
    assert (sample.buckets, sample.sum) == ((2.0, 2.0, 1.0, 1.0), 13.0)


@pytest.mark.parametrize("amount", [1, True, Decimal("0.5"), Fraction(1, 4), -2.5, Adding(0.5)])
def test_histogram_accepts_any_number(registry_dir: Path, amount: Any) -> None:
    Histogram("h", "Sizes.").observe(amount)
    sample = readings.samples(registry_dir, "h")[()]
    assert (sum(sample.buckets), sample.sum) == (1.0, float(amount))


@pytest.mark.parametrize("amount", NO_NUMBERS, ids=shown)
def test_histogram_drops_and_counts_a_value_that_is_not_a_number(registry_dir: Path, amount: Any) -> None:
    histogram = Histogram("h", "Sizes.")
    histogram.observe(0.5)
    histogram.observe(amount)
    sample = readings.samples(registry_dir, "h")[()]
    assert (sum(sample.buckets), sample.sum) == (1.0, 0.5)
    assert dropped() == {"not finite": 1}


@examples(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(amounts=st.lists(st.integers(-1000, 1000), max_size=20))
def test_count_is_the_sum_of_the_buckets(registry_dir: Path, amounts: list[int]) -> None:
    histogram = Histogram("h", "Sizes.", buckets=(-10, 0, 10))
    histogram.observe(0)
    before = readings.samples(registry_dir, "h")[()]
    for amount in amounts:
        histogram.observe(amount)
    after = readings.samples(registry_dir, "h")[()]
    assert sum(after.buckets) - sum(before.buckets) == len(amounts)
    assert after.sum - before.sum == sum(amounts)


@pytest.mark.parametrize("block", ["histogram", "gauge"])
def test_block_is_timed_also_when_it_fails(registry_dir: Path, monkeypatch: pytest.MonkeyPatch, block: str) -> None:
    seconds = iter([100.0, 102.5])
    metric = Histogram("m", "Seconds.") if block == "histogram" else Gauge("m", "Seconds.")
    monkeypatch.setattr(time, "perf_counter", lambda: next(seconds))
    with pytest.raises(KeyError), metric.time():
        raise KeyError
    sample = readings.samples(registry_dir, "m")[()]
    assert (sample.sum if block == "histogram" else sample.value) == 2.5


def test_default_buckets_are_those_of_the_settings(registry_dir: Path) -> None:
    Histogram("h", "Sizes.").observe(1)
    assert readings.snapshot(registry_dir).families[0][0].buckets == DEFAULT_BUCKETS


def test_buckets_of_the_settings_override_those_in_code(registry_dir: Path) -> None:
    settings.configure(dir=registry_dir, propagate_errors=True, buckets={"h*": [7]})
    Histogram("h", "Sizes.", buckets=(1, 2)).observe(1)
    assert readings.snapshot(registry_dir).families[0][0].buckets == (7.0,)


def test_last_bucket_may_be_infinite(registry_dir: Path) -> None:
    Histogram("h", "Sizes.", buckets=(1, math.inf)).observe(5)
    assert readings.samples(registry_dir, "h")[()].buckets == (0.0, 1.0)


@pytest.mark.parametrize(
    "buckets", [np.array([1, 2]), np.array([1.0, 2.0]), np.linspace(1, 2, 2, dtype=np.float32), [Decimal(1), 2]]
)
def test_buckets_may_be_any_numbers(registry_dir: Path, buckets: Any) -> None:
    Histogram("h", "Sizes.", buckets=buckets).observe(1.5)
    assert readings.snapshot(registry_dir).families[0][0].buckets == (1.0, 2.0)


@pytest.mark.parametrize(
    "buckets", [(2, 1), (1, 1), (math.nan,), (math.inf,), ("a",), tuple(range(129)), (10**400,), ()]
)
def test_bad_buckets_are_refused_as_a_definition(buckets: Any) -> None:
    with pytest.raises(InstrumentError, match="1 to 128 finite bounds"):
        Histogram("h", "Sizes.", buckets=buckets)


# ------------------------------------------------------------------ blocks


def blocks(metric: Any) -> list[Any]:
    """The context managers of a metric or one of its series."""
    return [
        getattr(metric, name)() for name in ("time", "track_inprogress", "count_exceptions") if hasattr(metric, name)
    ]


OFFERING: list[Callable[[], Any]] = [
    lambda: Counter("m", ""),
    lambda: Gauge("m", ""),
    lambda: Histogram("m", ""),
    lambda: Counter("m", "", ["user"]).labels("a"),
    lambda: Gauge("m", "", ["user"]).labels("a"),
    lambda: Histogram("m", "", ["user"]).labels("a"),
]


@pytest.mark.parametrize("offering", OFFERING)
def test_a_block_may_be_reused_and_nested_in_itself(offering: Callable[[], Any]) -> None:
    for block in blocks(offering()):
        for _ in range(2):
            with block, block:
                pass


def test_kept_blocks_record_each_time(registry_dir: Path) -> None:
    histogram, gauge, counter = Histogram("h", ""), Gauge("g", ""), Counter("c", "")
    timed, tracked, counted = histogram.time(), gauge.track_inprogress(), counter.count_exceptions(KeyError)
    for _ in range(2):
        with contextlib.suppress(KeyError), timed, tracked, tracked, counted:
            assert value(registry_dir, "g") == 2.0
            raise KeyError
    assert sum(readings.samples(registry_dir, "h")[()].buckets) == 2.0
    assert (value(registry_dir, "g"), value(registry_dir, "c_total")) == (0.0, 2.0)


@pytest.mark.parametrize("metric", [Gauge, Histogram])
def test_labels_of_a_timed_block_may_be_set_within_it(registry_dir: Path, metric: Any) -> None:
    timed = metric("m", "", ["user"]).time()
    for user in ("a", "b"):
        with timed as timer:
            timer.labels(user)
    assert set(readings.samples(registry_dir, "m")) == {("a",), ("b",)}
    assert timed.duration > 0.0


def test_a_timed_block_without_labels_is_counted_as_an_error(registry_dir: Path) -> None:
    settings.configure(dir=registry_dir)
    with Histogram("h", "", ["user"]).time():
        pass
    assert guard.take_counts() == {"labels": 1}


def test_a_labelled_series_refuses_further_labels(registry_dir: Path) -> None:
    counter = Counter("c", "", ["user"])
    with pytest.raises(InstrumentError, match=r"^c_total has its labels already$"):
        counter.labels("a").labels("b")
    settings.configure(dir=registry_dir)
    Counter("d", "", ["user"]).labels("a").labels("b").inc()
    assert guard.take_counts() == {"labels": 1}


def test_series_accept_and_ignore_exemplars(registry_dir: Path) -> None:
    counter, histogram = Counter("c", "", ["user"]).labels("a"), Histogram("h", "", ["user"]).labels("a")
    counter.inc(exemplar={"trace_id": "x"})
    counter.inc(1, {"trace_id": "x" * 200})
    histogram.observe(1, exemplar={"trace_id": "x"})
    histogram.observe(1, {"trace_id": "x"})
    assert value(registry_dir, "c_total", "a") == 2.0
    assert sum(readings.samples(registry_dir, "h")["a",].buckets) == 2.0


@pytest.mark.parametrize("offering", OFFERING)
def test_decorated_function_keeps_its_signature(offering: Callable[[], Any]) -> None:
    def add(one: int, other: int = 2) -> int:
        return one + other

    for block in blocks(offering()):
        decorated = block(add)
        assert inspect.getfullargspec(decorated) == inspect.getfullargspec(add)  # as Celery reads it
        assert (decorated.__name__, decorated(1), decorated(1, other=1)) == ("add", 3, 2)


@pytest.mark.parametrize("offering", OFFERING)
def test_decorated_coroutine_function_is_one(offering: Callable[[], Any]) -> None:
    async def answer() -> int:
        return 42

    for block in blocks(offering()):
        decorated = block(answer)
        assert inspect.iscoroutinefunction(decorated)
        assert asyncio.run(decorated()) == 42


# ------------------------------------------------------------------ labels


def test_shortcuts_do_what_the_plain_way_does(active_settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    labelled, only = Counter("a", "", ["user"]), Counter("b", "")
    series = labelled.labels(user="x")
    assert labelled.labels("x") is series is labelled.at(("x",))
    only.inc()
    assert only._only() is only.at(())
    ticks: list[int] = []
    monkeypatch.setattr(series.writer, "tick", lambda: ticks.append(1))
    for check_at, due in ((math.inf, 0), (-math.inf, 1)):
        series.writer.check_at = check_at
        for step in (lambda: labelled.labels("x"), lambda: labelled.labels(user="x"), only._only, series.writer.look):
            ticks.clear()
            step()
            assert len(ticks) == due


def test_labels_by_position_and_by_name_are_one_series(registry_dir: Path) -> None:
    counter = Counter("c", "Things.", ["user", "region"])
    counter.labels("a", "eu").inc()
    counter.labels(region="eu", user="a").inc()
    assert counter.labels("a", "eu") is counter.labels(region="eu", user="a")
    assert value(registry_dir, "c_total", "a", "eu") == 2.0


@pytest.mark.parametrize(("given_value", "text"), [(5, "5"), (None, "None"), (True, "True"), (1.5, "1.5")])
def test_label_value_becomes_text(registry_dir: Path, given_value: object, text: str) -> None:
    Counter("c", "Things.", ["user"]).labels(given_value).inc()
    assert value(registry_dir, "c_total", text) == 1.0


def test_label_value_that_has_no_hash_becomes_text(registry_dir: Path) -> None:
    Counter("c", "Things.", ["user"]).labels([1]).inc()
    assert value(registry_dir, "c_total", "[1]") == 1.0


@pytest.mark.parametrize("text", ["", "größe", "\0", "\udcff", 'a"b\\c\n'])
def test_any_text_is_a_label_value(registry_dir: Path, text: str) -> None:
    Counter("c", "Things.", ["user"]).labels(text).inc()
    assert value(registry_dir, "c_total", text) == 1.0


def test_long_label_value_is_cut() -> None:
    assert label_value("x" * 256) == "x" * 256
    assert label_value("x" * 257) == "x" * 255 + "…"


@pytest.mark.parametrize(
    ("values", "named"), [((), {}), (("a",), {}), (("a", "b", "c"), {}), ((), {"user": "a"}), (("a",), {"region": "b"})]
)
def test_wrong_labels_are_refused(values: tuple[str, ...], named: dict[str, str]) -> None:
    with pytest.raises(ValueError, match=r"^c_total has"):
        Counter("c", "Things.", ["user", "region"]).labels(*values, **named)


def test_unknown_label_is_refused_with_the_known_ones() -> None:
    with pytest.raises(InstrumentError, match=r"^c_total has the labels \['user'\], not \['usr'\]$"):
        Counter("c", "Things.", ["user"]).labels(usr="a")


def test_labelled_metric_is_not_recorded_without_labels() -> None:
    with pytest.raises(InstrumentError, match=r"^c_total is missing label values: call labels\(\) first$"):
        Counter("c", "Things.", ["user"]).inc()


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    "misuse",
    [
        lambda: Counter("c", "", ["user"]).labels().inc(),
        lambda: Counter("c", "", ["user"]).labels("a", "b").inc(),
        lambda: Counter("c", "", ["user"]).labels(usr="a").inc(),
        lambda: Counter("c", "", ["user"]).labels(Unprintable()).inc(),
        lambda: Counter("c", "", ["user"]).inc(),
        lambda: Counter("c", "").labels("a").inc(),
        lambda: Gauge("c", "", ["user"], multiprocess_mode="sum").set(1),
        lambda: Gauge("c", "", ["user"], multiprocess_mode="max").set(1),
        lambda: Gauge("c", "", ["user"]).dec(),
        lambda: Gauge("c", "", multiprocess_mode="mostrecent").inc(),
        lambda: Histogram("c", "", ["user"]).observe(1),
        lambda: Histogram("c", "", ["user"]).labels(5, 6).observe(1),
    ],
)
def test_misuse_in_a_job_is_counted_and_never_raised(registry_dir: Path, misuse: Callable[[], None]) -> None:
    settings.configure(dir=registry_dir)
    misuse()
    assert sum(guard.take_counts().values()) == 1
    assert list(registry_dir.iterdir()) == []


def test_misuse_is_logged(registry_dir: Path, caplog: pytest.LogCaptureFixture) -> None:
    settings.configure(dir=registry_dir)
    for _ in range(3):
        Counter("c", "", ["user"]).labels("a", "b").inc()
    (record,) = caplog.records
    assert record.getMessage() == (
        "jobmetrics: error in labels, the job is not affected: "
        "InstrumentError: c_total has the labels ['user']; labels() got 2 values"
    )


def test_limits_are_settings(registry_dir: Path) -> None:
    settings.configure(
        dir=registry_dir,
        propagate_errors=True,
        max_name_length=10,
        max_label_name_length=4,
        max_label_value_length=5,
        max_labels=2,
    )
    with pytest.raises(InstrumentError, match=r"at most 10 letters, digits, _ and :, not starting with a digit$"):
        Gauge("a" * 11, "")
    with pytest.raises(InstrumentError, match=r"at most 4 letters, digits and _, not starting with a digit or __$"):
        Gauge("g", "", ["users"])
    with pytest.raises(InstrumentError, match=r"^g takes at most 2 labels, each once; it was given 'a', 'b', 'c'$"):
        Gauge("g", "", ["a", "b", "c"])
    Counter("c", "", ["user"]).labels("abcdef").inc()
    assert value(registry_dir, "c_total", "abcd…") == 1.0


def test_a_label_name_with_a_line_break_is_refused_in_one_line() -> None:
    with pytest.raises(
        InstrumentError, match=r"^orders_total takes at most 16 labels, each once; it was given 'a\\n', '1', '1'$"
    ):
        Counter("orders", "", ["a\n", "1", "1"])


def test_limits_of_the_environment_apply_before_configure(monkeypatch: pytest.MonkeyPatch) -> None:
    settings.use(None)
    monkeypatch.setenv("JOBMETRICS_MAX_LABELS", "1")
    with pytest.raises(InstrumentError, match=r"^g takes at most 1 labels, each once; it was given 'a', 'b'$"):
        Gauge("g", "", ["a", "b"])
    assert settings.peek() is None


def test_a_bad_environment_does_not_break_definitions(monkeypatch: pytest.MonkeyPatch) -> None:
    settings.use(None)
    monkeypatch.setenv("JOBMETRICS_MAX_LABELS", "many")
    assert Gauge("g", "", ["a", "b"]).family.labels == ("a", "b")


@pytest.mark.parametrize("before", [0, 1])
def test_metric_without_labels_refuses_labels_before_and_after_its_first_update(before: int) -> None:
    counter = Counter("c", "Things.")
    for _ in range(before):
        counter.inc()
    with pytest.raises(InstrumentError):
        counter.labels()


def test_bound_series_beyond_the_cap_are_not_kept(registry_dir: Path) -> None:
    settings.configure(dir=registry_dir, propagate_errors=True, max_series=10)
    counter = Counter("c", "Things.", ["user"])
    for number in range(100):
        counter.labels(str(number)).inc()
    assert len(counter._children) <= 10
    assert sum(readings.values(registry_dir, "c_total").values()) == 100.0


# ------------------------------------------------------------------ before the first update, and removal


def record_something() -> None:
    Counter("something", "").inc()


@pytest.mark.parametrize("mode", MODES)
def test_metrics_without_labels_are_0_once_the_process_records_anything(registry_dir: Path, mode: str) -> None:
    defined = (
        Counter("c", "Things."),
        Gauge("g", "Things.", multiprocess_mode=mode),
        Histogram("h", "Sizes.", buckets=(1,)),
    )
    assert (len(defined), list(registry_dir.iterdir())) == (3, [])
    record_something()
    assert (value(registry_dir, "c_total"), value(registry_dir, "g")) == (0.0, 0.0)
    assert readings.samples(registry_dir, "h")[()].buckets == (0.0, 0.0)


@pytest.mark.parametrize("metric", [Counter, Gauge, Histogram])
def test_series_is_0_after_labels_alone_before_and_after_the_process_records(registry_dir: Path, metric: Any) -> None:
    labelled = metric("m", "", ["user"])
    labelled.labels("before")
    assert list(registry_dir.iterdir()) == []
    record_something()
    labelled.labels("after")
    assert set(readings.samples(registry_dir, labelled.family.name)) == {("before",), ("after",)}


def test_metric_defined_in_a_process_that_records_is_0_at_once(registry_dir: Path) -> None:
    record_something()
    Counter("late", "Things.")
    assert value(registry_dir, "late_total") == 0.0


@pytest.mark.parametrize("mode", MODES)
def test_gauge_that_was_shown_as_0_takes_its_first_value(registry_dir: Path, mode: str) -> None:
    gauge = Gauge("g", "Things.", multiprocess_mode=mode)
    record_something()
    gauge.set(-5)
    assert value(registry_dir, "g") == -5.0


def test_defined_metrics_are_0_in_a_new_generation(registry_dir: Path, clock: FakeClock) -> None:
    counter, other = Counter("c", ""), Counter("d", "")
    counter.inc()
    (registry_dir / "index").unlink()
    writer = current.writer()
    writer.check_at = 0.0
    writer.tick()
    counter.inc()
    assert (value(registry_dir, "c_total"), value(registry_dir, "d_total")) == (1.0, 0.0)
    assert other.family.name == "d_total"


def test_defined_metrics_are_0_in_the_directory_of_other_settings(registry_dir: Path) -> None:
    counter = Counter("c", "")
    record_something()
    die(current.writer())
    other = registry_dir.parent / "other"
    settings.configure(dir=other, propagate_errors=True)
    assert not other.exists()
    counter_of_other_settings = Counter("d", "")
    counter_of_other_settings.inc()
    assert (value(registry_dir, "c_total"), counter.family.name) == (0.0, "c_total")
    assert value(other, "d_total") == 1.0


def test_a_child_forked_before_the_first_record_shows_its_parents_metrics(registry_dir: Path) -> None:
    counter, labelled = Counter("c", ""), Counter("d", "", ["user"])
    labelled.labels("a")
    child = os.fork()
    if child == 0:
        record_something()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert (value(registry_dir, "c_total"), value(registry_dir, "d_total", "a")) == (0.0, 0.0)
    assert counter.family.name == "c_total"


def labelled_metric(kind: Any, **more: Any) -> tuple[Any, Callable[[str], None]]:
    """A metric with two labels, and how one of its series gets a value."""
    metric = kind("m", "", ["tenant", "path"], **more)
    update = "set" if kind is Gauge else "inc" if kind is Counter else "observe"
    return metric, lambda path: getattr(metric.labels("acme", path), update)(2)


KINDS = [(Counter, {}), (Histogram, {}), *((Gauge, {"multiprocess_mode": mode}) for mode in MODES)]


@pytest.mark.parametrize(("kind", "more"), KINDS)
@pytest.mark.parametrize(
    "take_away",
    [
        lambda metric: metric.remove("acme", "/a"),
        lambda metric: metric.remove_by_labels({"path": "/a"}),
        lambda metric: metric.clear(),
    ],
)
def test_a_removed_series_is_not_shown_and_starts_at_0(
    registry_dir: Path, kind: Any, more: Any, take_away: Callable[[Any], None]
) -> None:
    metric, update = labelled_metric(kind, **more)
    for _ in range(2):
        update("/a")
        take_away(metric)
        assert ("acme", "/a") not in readings.samples(registry_dir, metric.family.name)
    metric.labels("acme", "/a")
    sample = readings.samples(registry_dir, metric.family.name)["acme", "/a"]
    assert (sample.value, sample.sum, sum(sample.buckets)) == (0.0, 0.0, 0.0)
    update("/a")
    sample = readings.samples(registry_dir, metric.family.name)["acme", "/a"]
    assert (sample.sum if kind is Histogram else sample.value) == 2.0


def test_only_series_with_the_labels_are_removed(registry_dir: Path) -> None:
    counter = Counter("c", "", ["tenant", "path"])
    for tenant, path in (("acme", "/"), ("acme", "/a"), ("globex", "/")):
        counter.labels(tenant, path).inc()
    counter.remove_by_labels({})
    assert len(readings.values(registry_dir, "c_total")) == 3
    counter.remove_by_labels({"tenant": "acme"})
    counter.remove("globex", "/never there")
    assert readings.values(registry_dir, "c_total") == {("globex", "/"): 1.0}


@pytest.mark.parametrize(
    "misuse",
    [
        lambda counter: counter.remove(),
        lambda counter: counter.remove("a", "b", "c"),
        lambda counter: counter.remove_by_labels({"badkey": "x"}),
        lambda counter: counter.remove_by_labels(None),
    ],
)
def test_wrong_labels_to_remove_are_counted_as_an_error(registry_dir: Path, misuse: Callable[[Any], None]) -> None:
    settings.configure(dir=registry_dir)
    misuse(Counter("c", "", ["tenant", "path"]))
    assert guard.take_counts() == {"remove": 1}


def test_clear_leaves_a_metric_without_labels_alone(registry_dir: Path) -> None:
    counter = Counter("c", "")
    counter.inc()
    counter.clear()
    assert value(registry_dir, "c_total") == 1.0


def test_counter_that_is_reset_begins_at_0_again(registry_dir: Path) -> None:
    counter, labelled = Counter("c", ""), Counter("d", "", ["user"]).labels("a")
    for metric in (counter, labelled):
        metric.inc(5)
        metric.reset()
        metric.inc()
        metric.reset()
    assert (value(registry_dir, "c_total"), value(registry_dir, "d_total", "a")) == (0.0, 0.0)
    counter.inc(0.5)
    assert value(registry_dir, "c_total") == 0.5


def test_reset_outlives_its_process_and_counts_go_on_under_the_slots_next_owner(registry_dir: Path) -> None:
    counter = Counter("c", "")
    for amount in (5, 2):
        child = os.fork()
        if child == 0:
            counter.inc(amount)
            if amount == 5:
                counter.reset()
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    assert len(list(registry_dir.glob("slot-*"))) == 1
    assert value(registry_dir, "c_total") == 2.0


def test_many_resets_and_removals_take_no_more_space_than_one(registry_dir: Path) -> None:
    counter, labelled = Counter("c", ""), Counter("d", "", ["user"])
    sizes = set()
    for _ in range(20):
        counter.inc()
        counter.reset()
        labelled.labels("a").inc()
        labelled.clear()
        sizes.add((registry_dir / "index").stat().st_size)
    assert len(sizes) == 1


def test_values_of_other_processes_in_a_removed_series_stay(registry_dir: Path, active_settings: Settings) -> None:
    counter = Counter("c", "", ["user"])
    counter.labels("a").inc(3)
    other = Writer(active_settings)
    bound.BoundCounter(other, counter.family, ("a",)).inc(4)
    counter.remove("a")
    assert value(registry_dir, "c_total", "a") == 4.0
    die(other)


def test_nothing_is_removed_before_a_process_records(registry_dir: Path) -> None:
    counter = Counter("c", "", ["user"])
    counter.labels("a")
    counter.clear()
    record_something()
    assert readings.samples(registry_dir, "c_total") == {}


# ------------------------------------------------------------------ definition


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        ({"name": "c"}, "c_total"),
        ({"name": "c_total"}, "c_total"),
        ({"name": "c", "namespace": "acme", "subsystem": "web"}, "acme_web_c_total"),
        ({"name": "c", "unit": "bytes"}, "c_bytes_total"),
        ({"name": "c_bytes_total", "unit": "bytes"}, "c_bytes_total"),
    ],
)
def test_counter_is_named_as_prometheus_client_names_it(parts: dict[str, str], expected: str) -> None:
    assert Counter(documentation="Things.", **parts).family.name == expected


def test_gauge_has_its_unit_in_its_name() -> None:
    assert Gauge("g", "Things.", unit="seconds").family.name == "g_seconds"


@pytest.mark.parametrize("name", ["", "1a", "a-b", "a b", "größe", "a\n", "a" * 129])
def test_bad_name_is_refused(name: str) -> None:
    with pytest.raises(InstrumentError, match="is not a valid metric name"):
        Gauge(name, "Things.")


@pytest.mark.parametrize("kind", [Counter, Gauge, Histogram])
@pytest.mark.parametrize("name", ["", None, 5, b"c"], ids=shown)
@pytest.mark.parametrize("parts", [{}, {"namespace": "acme"}, {"subsystem": "web"}, {"unit": "bytes"}], ids=str)
def test_empty_name_is_refused_whatever_surrounds_it(kind: Any, name: Any, parts: dict[str, str]) -> None:
    with pytest.raises(InstrumentError, match="is not a valid metric name"):
        kind(name, "Things.", **parts)


@pytest.mark.parametrize("parts", [{"name": "_total"}, {"name": "_total", "unit": "bytes"}], ids=str)
def test_counter_whose_name_is_only_its_suffix_is_refused(parts: dict[str, str]) -> None:
    with pytest.raises(InstrumentError, match="is not a valid metric name"):
        Counter(documentation="Things.", **parts)


@pytest.mark.parametrize("name", ["g_total", "g_info", "g_created", "g_bucket", "g_count", "g_sum"])
def test_a_name_that_ends_like_a_sample_is_accepted_without_a_collision(name: str) -> None:
    assert Gauge(name, "Things.").family.name == name
    assert Counter(f"fail_{name}", "Things.").family.name == f"fail_{name.removesuffix('_total')}_total"


@pytest.mark.parametrize(
    ("one", "other", "shown"),
    [
        (lambda: Histogram("m", ""), lambda: Gauge("m_sum", ""), "m_sum"),
        (lambda: Gauge("m_count", ""), lambda: Histogram("m", ""), "m_count"),
        (lambda: Counter("m", ""), lambda: Gauge("m", ""), "m"),
        (lambda: Counter("m", ""), lambda: Gauge("m_created", ""), "m_created"),
        (lambda: Histogram("m", ""), lambda: Gauge("m_bucket", ""), "m_bucket"),
    ],
)
def test_names_that_collide_in_the_exposition_are_refused_with_a_remedy(one: Any, other: Any, shown: str) -> None:
    one()
    with pytest.raises(InstrumentError, match=f"would both be shown as {shown}: take another .*namespace='myapp'$"):
        other()


@pytest.mark.parametrize("name", ["jobs_duration_seconds_count", "jobs_created"])
def test_names_of_built_in_samples_are_refused_with_a_remedy(name: str) -> None:
    with pytest.raises(
        InstrumentError, match=rf", a metric of jobmetrics itself, uses the name {name}; .*namespace='myapp'$"
    ):
        Gauge(name, "Things.")
    assert Gauge(name, "Things.", namespace="myapp").family.name == f"myapp_{name}"


@pytest.mark.parametrize(
    "define",
    [
        lambda: Histogram("h", "", bucket=[1, 2]),  # type: ignore[call-arg]
        lambda: Gauge("g", "", multiprocess="max"),  # type: ignore[call-arg]
        lambda: Counter("c", "", label_names=["user"]),  # type: ignore[call-arg]
    ],
)
def test_unknown_keyword_is_an_error(define: Callable[[], object]) -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument"):
        define()


@pytest.mark.parametrize(
    "family",
    [family for family in BUILT_IN if family.type == "gauge"],
    ids=lambda family: str(family.name),
)
def test_names_of_built_in_gauges_are_refused(family: Family) -> None:
    with pytest.raises(InstrumentError, match="a metric of jobmetrics itself, uses the name"):
        Gauge(family.name, "Things.")


def test_names_of_built_in_counters_without_suffix_are_refused() -> None:
    with pytest.raises(InstrumentError):
        Gauge("jobs", "Things.")


@pytest.mark.parametrize("label", ["", "1a", "a-b", "__a", "größe", "a\n", "a" * 65])
def test_bad_label_name_is_refused(label: str) -> None:
    with pytest.raises(InstrumentError, match="is not a valid label name for g"):
        Gauge("g", "Things.", [label])


def test_histogram_refuses_a_label_le() -> None:
    with pytest.raises(InstrumentError, match="may not have the label 'le'"):
        Histogram("h", "Sizes.", ["le"])


@pytest.mark.parametrize("labels", [["a", "a"], [f"l{number}" for number in range(17)]])
def test_too_many_or_repeated_labels_are_refused(labels: list[str]) -> None:
    with pytest.raises(InstrumentError, match="at most 16 labels, each once"):
        Gauge("g", "Things.", labels)


def test_same_definition_twice_is_one_metric(registry_dir: Path) -> None:
    Counter("c", "Things.", ["user"]).labels("a").inc()
    Counter("c", "Said otherwise.", ["user"]).labels("a").inc()
    assert value(registry_dir, "c_total", "a") == 2.0


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (lambda: Gauge("m", ""), lambda: Histogram("m", "")),
        (lambda: Gauge("m", ""), lambda: Gauge("m", "", ["user"])),
        (lambda: Gauge("m", ""), lambda: Gauge("m", "", multiprocess_mode="max")),
        (lambda: Histogram("m", "", buckets=(1,)), lambda: Histogram("m", "", buckets=(2,))),
    ],
)
def test_other_definition_of_a_name_is_refused(one: Any, other: Any) -> None:
    one()
    with pytest.raises(InstrumentError, match=r"^m is already defined in this process"):
        other()


def test_the_registry_argument_is_accepted_and_ignored() -> None:
    assert Counter("c", "Things.", registry=object()).family.name == "c_total"


def test_documentation_of_any_kind_is_recorded(registry_dir: Path) -> None:
    class Lazy:
        def __str__(self) -> str:
            return "Translated later."

    Counter("c", Lazy()).inc()  # type: ignore[arg-type]
    assert readings.snapshot(registry_dir).families[0][0].help == "Translated later."


def test_defining_touches_no_file(registry_dir: Path) -> None:
    Counter("c", "Things.")
    Histogram("h", "Sizes.")
    Gauge("g", "Things.", ["user"]).labels("a")
    assert list(registry_dir.iterdir()) == []


# ------------------------------------------------------------------ batches


def test_batch_is_applied_at_the_end(registry_dir: Path) -> None:
    rows, size, level = Counter("c", "", ["t"]), Histogram("h", "", ["t"]), Gauge("g", "", ["t"])
    with Batch() as batch:
        batch.inc(rows.labels("a"), 3)
        batch.observe(size.labels("a"), 12.5)
        batch.set(level.labels("a"), 2)
        assert list(registry_dir.iterdir()) == []
    assert value(registry_dir, "c_total", "a") == 3.0
    assert readings.samples(registry_dir, "h")["a",].sum == 12.5
    assert value(registry_dir, "g", "a") == 2.0


def test_batch_that_fails_applies_nothing(registry_dir: Path) -> None:
    batch = Batch()
    batch.inc(Counter("c", "", ["t"]).labels("a"))
    with pytest.raises(KeyError), batch:
        raise KeyError
    batch.apply()
    assert list(registry_dir.iterdir()) == []


def test_batch_is_applied_once(registry_dir: Path) -> None:
    with Batch() as batch:
        batch.inc(Counter("c", "", ["t"]).labels("a"))
    batch.apply()
    assert value(registry_dir, "c_total", "a") == 1.0


# ------------------------------------------------------------------ builds without the GIL


def test_every_update_that_writes_cells_is_locked() -> None:
    named = {(cls.__name__, name) for cls, name in bound.UPDATES}
    writes = {
        (cls.__name__, name)
        for cls in vars(bound).values()
        if isinstance(cls, type) and issubclass(cls, BoundSeries) and cls is not BoundSeries
        for name in ("inc", "set", "observe")
        if name in vars(cls)
    }
    assert named == writes


@pytest.mark.parametrize(("owner", "name"), bound.UPDATES)
def test_a_locked_update_holds_the_writers_lock(owner: type[BoundSeries], name: str, writer: Writer) -> None:
    seen: list[tuple[bool, float]] = []
    original = getattr(owner, name)

    @functools.wraps(original)
    def update(self: BoundSeries, amount: float) -> None:
        seen.append((self.writer.lock._is_owned(), amount))  # type: ignore[attr-defined]  # RLock's own word for it

    call = bound.locked(update)
    parameter = list(inspect.signature(original).parameters.values())[1]
    call(BoundSeries(writer, Family("c_total", "counter", ""), ()), **{parameter.name: 2.0})
    call(BoundSeries(writer, Family("c_total", "counter", ""), ()), 3.0)
    assert seen == [(True, 2.0), (True, 3.0)]


def test_labelled_keeps_its_series(writer: Writer) -> None:
    labelled = Labelled(BoundSeries, Family("c_total", "counter", "", ("user",)), writer)
    assert labelled.at(("a",)) is labelled.at(("a",))


def test_series_added_by_another_thread_during_eviction_are_harmless(registry_dir: Path) -> None:
    """Eviction looks through all series; threads switch whenever the garbage collector calls Python."""
    settings.configure(dir=registry_dir, propagate_errors=True, max_series=50)
    labelled = Labelled(BoundSeries, Family("c_total", "counter", "", ("user",)), current.writer())
    for number in range(50):
        labelled.at((f"{number}",))
    added: list[BoundSeries] = []

    def add(_: str, __: dict[str, int]) -> None:
        user = (f"another {len(added)}",)
        added.append(BoundSeries(current.writer(), labelled.family, user))
        labelled._children[user] = added[-1]

    before = gc.get_threshold()
    gc.callbacks.append(add)
    gc.set_threshold(1)
    try:
        labelled.at(("one more",))
    finally:
        gc.set_threshold(*before)
        gc.callbacks.remove(add)
    assert added
