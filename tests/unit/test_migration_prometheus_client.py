"""The differences to prometheus_client on the migration page, row by row: both sides of each are checked."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.parser import text_string_to_metric_families

import jobmetrics
from jobmetrics import Counter, Gauge, Histogram, guard, settings
from jobmetrics.collector_api import CollectorOptions
from jobmetrics.errors import InstrumentError
from jobmetrics.exporter import app
from jobmetrics.registry.write import current
from jobmetrics.registry.write.writer import Writer
from jobmetrics.settings import Settings
from tests.support import readings
from tests.unit.doubles import die

PAGE = Path(__file__).parents[2] / "docs" / "migration-prometheus-client.md"

# Rows about processes, files and pages, which other tests check.
ELSEWHERE = {
    "a gauge of a killed process stays until `mark_process_dead`",  # tests/multiprocess/test_live_gauges.py
    "three files per process, which stay",  # tests/multiprocess/test_bounded.py
    "no limit on series",  # tests/multiprocess/test_capped.py
}

CHECKS: dict[str, Callable[[Path], None]] = {}


def row(title: str) -> Callable[[Callable[[Path], None]], Callable[[Path], None]]:
    """Register a function as the check of the page's row with this title."""

    def add(check: Callable[[Path], None]) -> Callable[[Path], None]:
        CHECKS[title] = check
        return check

    return add


@pytest.fixture(autouse=True)
def recorded(registry_dir: Path) -> Iterator[None]:
    """A process that has recorded, with the settings of a worker."""
    settings.configure(dir=registry_dir)
    Counter("something", "").inc()
    yield
    die(current.writer())


def theirs(name: str, *arguments: Any, **more: Any) -> Any:
    return getattr(prometheus_client, name)(*arguments, registry=CollectorRegistry(), **more)


def shown(directory: Path, name: str, *labels: str) -> float:
    return readings.samples(directory, name)[labels].value


def page(directory: Path) -> dict[str, dict[tuple[str, ...], float]]:
    """The contents of the exporter: values of each sample by label values."""
    exporter = app.build(Settings(dir=str(directory)), CollectorOptions())
    try:
        return _by_name(exporter.text().decode())
    finally:
        exporter.close()


def _by_name(text: str) -> dict[str, dict[tuple[str, ...], float]]:
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for metric in text_string_to_metric_families(text):
        for sample in metric.samples:
            found.setdefault(sample.name, {})[tuple(sample.labels.values())] = sample.value
    return found


def dropped() -> set[tuple[str, str]]:
    return set(current.writer().take_dropped_updates())


def test_each_row_of_the_page_has_its_check() -> None:
    titles = re.findall(r"^\| (.*?) \| .* \|$", PAGE.read_text(), re.MULTILINE)
    assert {title for title in titles if title != "prometheus_client"} == CHECKS.keys() | ELSEWHERE


@row("`Summary`, `Info`, `Enum`, custom collectors")
def _(_: Path) -> None:
    assert not [name for name in ("Summary", "Info", "Enum") if hasattr(jobmetrics, name)]


@row("`Gauge.set_function`")
def _(_: Path) -> None:
    assert not hasattr(Gauge("g", ""), "set_function")


@row("several registries, `registry=`")
def _(_: Path) -> None:
    theirs("Gauge", "g", "")
    theirs("Gauge", "g", "", ["user"])
    one, same = (Gauge("g", "", registry=object()) for _ in range(2))
    assert one.family == same.family
    with pytest.raises(InstrumentError, match=r"^g is already defined"):
        Gauge("g", "", ["user"], registry=None)
    with pytest.raises(InstrumentError, match=r"^h is already defined"):
        [Histogram("h", "", buckets=buckets, registry=None) for buckets in ([1], [1, 2])]


@row('`multiprocess_mode="all"`, `"liveall"`')
def _(_: Path) -> None:
    for mode in ("all", "liveall"):
        theirs("Gauge", "g", "", multiprocess_mode=mode)
        with pytest.raises(InstrumentError, match="it takes livesum, sum, max, min, mostrecent"):
            Gauge("g", "", multiprocess_mode=mode)


@row("`livemax`, `livemin`, `livemostrecent`")
def _(_: Path) -> None:
    for mode in ("livemax", "livemin", "livemostrecent"):
        theirs("Gauge", "g", "", multiprocess_mode=mode)
        with pytest.raises(InstrumentError, match="it takes livesum, sum, max, min, mostrecent"):
            Gauge("g", "", multiprocess_mode=mode)


@row("the default mode of gauges, `all`")
def _(_: Path) -> None:
    assert (theirs("Gauge", "g", "")._multiprocess_mode, Gauge("g", "").family.mode) == ("all", "livesum")


@row("names and labels may hold any UTF-8")
def _(_: Path) -> None:
    theirs("Counter", "my.größe", "", ["a.b"])
    for name, labels in (("my.größe", []), ("c", ["a.b"]), ("c", ["a:b"]), ("&", []), ("c", ["__reserved"])):
        with pytest.raises(InstrumentError):
            Counter(name, "", labels)


@row("a name is refused if the registry has it")
def _(_: Path) -> None:
    counter = Counter("jobs_fail_count", "")
    with pytest.raises(InstrumentError, match="namespace='myapp'"):
        Gauge("jobs_fail_count", "")
    assert Gauge("jobs_fail_count", "", namespace="myapp").family.name == "myapp_jobs_fail_count"
    assert counter.family.name == "jobs_fail_count_total"


@row("`repr()` is `prometheus_client.metrics.Counter(c)`")
def _(_: Path) -> None:
    assert repr(theirs("Counter", "c", "")) == "prometheus_client.metrics.Counter(c)"
    assert repr(Counter("c", "")).startswith("<jobmetrics.")


@row("private attributes such as `_name`, `_upper_bounds`")
def _(_: Path) -> None:
    histogram = Histogram("h", "", buckets=[1, 2])
    assert not hasattr(histogram, "_name")
    assert (histogram.family.name, histogram.family.buckets) == ("h", (1.0, 2.0))
    assert (
        Counter("b_total", "", unit="total").family.name == "b_total_total"
    )  # the name of the sample, as in prometheus_client


class _NoText:
    __str__ = None  # type: ignore[assignment]  # an object that cannot become a label value


MISUSES: list[Callable[[Any, Any], object]] = [
    lambda counter, _: counter.inc(),
    lambda counter, _: counter.count_exceptions(),
    lambda counter, _: counter.labels(),
    lambda counter, _: counter.labels("a", "b"),
    lambda counter, _: counter.labels(m="y"),
    lambda counter, _: counter.labels(_NoText()),
    lambda counter, _: counter.labels("a").labels("b"),
    lambda counter, _: counter.remove(),
    lambda counter, _: counter.remove("a", "b"),
    lambda counter, _: counter.remove_by_labels({"badkey": "x"}),
    lambda _, gauge: gauge.set(1),
    lambda _, gauge: gauge.inc(),
    lambda _, gauge: gauge.dec(),
    lambda _, gauge: gauge.track_inprogress(),
]


@row("a misuse raises `ValueError` or `TypeError` in the job")
def _(registry_dir: Path) -> None:
    for misuse in MISUSES:
        with pytest.raises((ValueError, TypeError)):
            misuse(theirs("Counter", "c", "", ["user"]), theirs("Gauge", "g", "", ["user"]))
    ours = Counter("c", "", ["user"]), Gauge("g", "", ["user"])
    for misuse in MISUSES:
        misuse(*ours)
        assert sum(guard.take_counts().values()) == 1
    die(current.writer())
    settings.configure(dir=registry_dir, propagate_errors=True)
    for misuse in MISUSES:
        with pytest.raises((ValueError, TypeError)):
            misuse(Counter("c", "", ["user"]), Gauge("g", "", ["user"]))


@row("a negative `inc` of a counter raises")
def _(registry_dir: Path) -> None:
    with pytest.raises(ValueError, match="non-negative"):
        theirs("Counter", "c", "").inc(-1)
    Counter("c", "").inc(-1)
    assert (shown(registry_dir, "c_total"), dropped()) == (0.0, {("negative", "c_total")})


@row("infinite values are recorded")
def _(registry_dir: Path) -> None:
    theirs("Histogram", "h", "").observe(math.inf)
    histogram, gauge = Histogram("h", ""), Gauge("g", "")
    histogram.observe(math.inf)
    gauge.set(math.inf)
    assert sum(readings.samples(registry_dir, "h")[()].buckets) == 0.0
    assert dropped() == {("not finite", "h"), ("not finite", "g")}
    gauge.set(math.nan)
    histogram.observe(math.nan)
    assert math.isnan(shown(registry_dir, "g"))
    assert dropped() == {("not finite", "h")}


@row("a value that is not a number raises")
def _(_: Path) -> None:
    with pytest.raises(ValueError, match="could not convert"):
        theirs("Gauge", "g", "").set("five")
    Gauge("g", "").set("five")  # type: ignore[arg-type]
    assert dropped() == {("not finite", "g")}


@row("exemplars are checked and kept")
def _(registry_dir: Path) -> None:
    too_long = {"trace_id": "x" * 200}
    with pytest.raises(ValueError, match="Exemplar"):
        theirs("Counter", "c", "").inc(exemplar=too_long)
    Counter("c", "").inc(exemplar=too_long)
    Histogram("h", "").observe(3, exemplar=too_long)
    Counter("d", "", ["user"]).labels("a").inc(1, {":o)": "smile"})
    assert (shown(registry_dir, "c_total"), shown(registry_dir, "d_total", "a")) == (1.0, 1.0)


@row("`time()` without `labels()` on a labelled metric raises")
def _(_: Path) -> None:
    with pytest.raises(ValueError, match="missing label values"), theirs("Histogram", "h", "", ["user"]).time():
        pass
    with Histogram("h", "", ["user"]).time():
        assert guard.take_counts() == {}
    assert guard.take_counts() == {"labels": 1}


@row("`count_exceptions()`, `track_inprogress()`, `time()` on a coroutine function cover the call only")
def _(registry_dir: Path) -> None:
    async def fail() -> None:
        raise KeyError

    for counter in (their_counter := theirs("Counter", "c", ""), Counter("c", "")):
        with pytest.raises(KeyError):
            asyncio.run(counter.count_exceptions()(fail)())
    assert their_counter._value.get() == 0.0
    assert shown(registry_dir, "c_total") == 1.0


@row("0 from the definition, or from `labels()`, on")
def _(registry_dir: Path) -> None:
    die(current.writer())
    nothing_yet = registry_dir.parent / "another"
    settings.configure(dir=nothing_yet)
    counter, labelled = Counter("c", ""), Gauge("g", "", ["user"])
    labelled.labels("a")
    assert not nothing_yet.exists()
    Counter("anything", "").inc()
    assert (shown(nothing_yet, "c_total"), shown(nothing_yet, "g", "a")) == (0.0, 0.0)
    assert counter.family.name == "c_total"


def _another(registry_dir: Path) -> Writer:
    return Writer(Settings(dir=str(registry_dir)))


@row("`max` and `min` count the 0 of a process that has not set its gauge")
def _(registry_dir: Path) -> None:
    gauge = Gauge("g", "", multiprocess_mode="max")
    assert shown(registry_dir, "g") == 0.0
    other = _another(registry_dir)
    jobmetrics.instruments.BoundGauge(other, gauge.family, ()).set(-3)
    assert shown(registry_dir, "g") == -3.0
    die(other)


@row("NaN of one process may hide the others' `max` and `min`")
def _(registry_dir: Path) -> None:
    gauge, other = Gauge("g", "", multiprocess_mode="max"), _another(registry_dir)
    gauge.set(math.nan)
    assert math.isnan(shown(registry_dir, "g"))
    jobmetrics.instruments.BoundGauge(other, gauge.family, ()).set(-3)
    assert shown(registry_dir, "g") == -3.0
    die(other)


@row("`remove`, `remove_by_labels` and `clear` do nothing across processes")
def _(registry_dir: Path) -> None:
    counter, other = Counter("c", "", ["user"]), _another(registry_dir)
    counter.labels("a").inc()
    counter.labels("b").inc()
    jobmetrics.instruments.BoundCounter(other, counter.family, ("b",)).inc(5)
    counter.clear()
    assert {labels: sample.value for labels, sample in readings.samples(registry_dir, "c_total").items()} == {("b",): 5}
    counter.labels("a")
    assert shown(registry_dir, "c_total", "a") == 0.0
    die(other)


@row("`reset()`")
def _(registry_dir: Path) -> None:
    counter = Counter("c", "")
    counter.inc()
    counter.reset()
    assert shown(registry_dir, "c_total") == 0.0


@row("`_created` samples")
def _(registry_dir: Path) -> None:
    Counter("c", "").inc()
    assert not [family.name for family, _ in readings.snapshot(registry_dir).families if "_created" in family.name]


@row("collectors of the process (`process_*`, `python_*`)")
def _(registry_dir: Path) -> None:
    def of_the_process(names: Iterable[str]) -> set[str]:
        return {name for name in names if name.startswith(("process_", "python_"))}

    assert "python_info" in of_the_process(_by_name(prometheus_client.generate_latest().decode()))
    current.writer().describe("rq", "worker")
    shown_by_us = page(registry_dir)
    assert of_the_process(shown_by_us) == set()
    assert shown_by_us["jobs_worker_resident_memory_bytes"]["rq",] > 0.0
    assert not [name for name in dir(prometheus_client) if name.endswith("Collector") and hasattr(jobmetrics, name)]


@row("`start_http_server` in a worker")
def _(registry_dir: Path) -> None:
    registries = [CollectorRegistry() for _ in range(2)]  # two processes; one of them has the port
    for registry, times in zip(registries, (1, 5), strict=True):
        prometheus_client.Counter("c", "", registry=registry).inc(times)
    assert _by_name(prometheus_client.generate_latest(registries[0]).decode())["c_total"] == {(): 1.0}
    assert not hasattr(jobmetrics, "start_http_server")
    counter, other = Counter("c", ""), _another(registry_dir)
    counter.inc()
    jobmetrics.instruments.BoundCounter(other, counter.family, ()).inc(5)
    assert page(registry_dir)["c_total"] == {(): 6.0}
    die(other)


@pytest.mark.parametrize("title", CHECKS)
def test_the_difference_matches_the_page(title: str, registry_dir: Path) -> None:
    CHECKS[title](registry_dir)
