from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from jobmetrics import Counter, Gauge, Histogram, duration, guard, increment, observe, runtime, set_gauge, settings
from jobmetrics.errors import InstrumentError
from jobmetrics.instruments import adhoc
from jobmetrics.registry.write import current
from jobmetrics.testing import CountingClock, read_sample, temporary_registry

ELSEWHERE = Counter("orders_elsewhere", "Of an application whose registry is not that of a test.", ["country"])


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    with temporary_registry():
        yield


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch) -> CountingClock:
    clock = CountingClock(100.0)
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


def test_counter_is_declared_on_first_use() -> None:
    increment("orders")
    increment("orders_total", 2.5)
    assert read_sample("orders_total") == 3.5


def test_another_registrys_metric_of_the_same_name_is_another_metric() -> None:
    assert ELSEWHERE is not None
    increment("orders_elsewhere")
    assert read_sample("orders_elsewhere_total") == 1.0


def test_labels_may_come_in_any_order() -> None:
    increment("orders", shop="a", region="eu")
    increment("orders", region="eu", shop="a")
    assert read_sample("orders_total", {"shop": "a", "region": "eu"}) == 2.0


def test_label_may_have_the_name_of_a_parameter() -> None:
    increment("orders", 1, name="a", amount="b")
    assert read_sample("orders_total", {"name": "a", "amount": "b"}) == 1.0


def test_gauge_shows_the_last_value() -> None:
    set_gauge("level", 5, tank="a")
    set_gauge("level", 3, tank="a")
    assert read_sample("level", {"tank": "a"}) == 3.0


def test_histogram_counts_by_size() -> None:
    observe("size_bytes", 0.3)
    assert (read_sample("size_bytes_count"), read_sample("size_bytes_sum")) == (1.0, 0.3)
    assert read_sample("size_bytes_bucket", {"le": "0.25"}) == 0.0
    assert read_sample("size_bytes_bucket", {"le": "0.5"}) == 1.0


@pytest.mark.parametrize("name", ["load", "load_seconds"])
def test_a_block_is_timed_whether_or_not_it_raises(seconds: CountingClock, name: str) -> None:
    def load() -> None:
        with duration(name, table="orders"):
            seconds.advance(1.5)
            raise KeyError

    with pytest.raises(KeyError):
        load()
    assert read_sample("load_seconds_sum", {"table": "orders"}) == 1.5


def test_function_and_coroutine_function_are_timed(seconds: CountingClock) -> None:
    @duration("load")
    def load() -> int:
        seconds.advance(1.0)
        return 1

    @duration("load")
    async def aload() -> int:
        await asyncio.sleep(0)
        seconds.advance(2.0)
        return 2

    assert (load(), asyncio.run(aload())) == (1, 2)
    assert read_sample("load_seconds_sum") == 3.0


def test_metric_defined_in_code_is_the_same_one() -> None:
    Counter("orders", "Orders.", ["shop", "region"]).labels("a", "eu").inc()
    increment("orders", region="eu", shop="a")
    assert read_sample("orders_total", {"shop": "a", "region": "eu"}) == 2.0
    level = Gauge("level", "Level.", multiprocess_mode="sum")
    level.set(1)
    set_gauge("level", 4)
    assert read_sample("level") == 4.0
    Histogram("size", "Size.", buckets=(1, 2)).observe(1)
    observe("size", 2)
    assert read_sample("size_bucket", {"le": "1"}) == 1.0


BAD: dict[str, Callable[[], object]] = {
    "bad name": lambda: increment("two words"),
    "no name": lambda: increment(None),  # type: ignore[arg-type]
    "empty name": lambda: increment(""),
    "nothing but a suffix": lambda: increment("_total"),
    "empty gauge name": lambda: set_gauge("", 1),
    "empty histogram name": lambda: observe("", 1),
    "our own": lambda: increment("jobs"),
    "our own, with the suffix twice": lambda: increment("jobs_total_total"),
    "the name of another's sample": lambda: increment("known_total_total"),
    "bad label": lambda: increment("orders", __shop="a"),
    "other labels": lambda: increment("known", shop="a"),
    "another kind": lambda: set_gauge("known", 1),
}


@pytest.mark.parametrize("use", BAD.values(), ids=BAD.keys())
def test_misuse_is_counted_and_never_raised(use: Callable[[], object]) -> None:
    increment("known")
    settings.use(settings.load({}, dir=settings.active().dir))
    use()
    assert sum(guard.take_counts().values()) == 1
    assert read_sample("known_total") == 1.0


@pytest.mark.parametrize("use", BAD.values(), ids=BAD.keys())
def test_misuse_raises_in_tests(use: Callable[[], object]) -> None:
    increment("known")
    with pytest.raises(InstrumentError):
        use()


@pytest.mark.parametrize("value", [float("inf"), None, "five"])
def test_bad_value_is_dropped_and_counted(value: Any) -> None:
    increment("orders", value)
    set_gauge("level", value)
    observe("size", value)
    names = ("orders_total", "level", "size")
    assert current.writer().take_dropped_updates() == {("not finite", name): 1 for name in names}


def test_the_number_of_names_is_capped() -> None:
    with temporary_registry(max_series=50):
        settings.use(settings.load({}, dir=settings.active().dir, max_series=50))
        for number in range(100):
            increment(f"orders_{number}")
        assert len(runtime.state(adhoc.AdHocMetrics).known) == 50
        assert guard.take_counts() == {"increment": 50}
