"""The same program of operations on prometheus_client in one process and on jobmetrics in several.

Both expositions must be equal. Amounts are whole eighths, so that sums are exact in any order of addition.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, TypeAlias

import prometheus_client
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

import jobmetrics
from jobmetrics import settings
from jobmetrics.exporter.metrics_page import Exposition
from jobmetrics.log_throttle import ThrottledLog
from tests.multiprocess.support import Child, children, serve
from tests.support import readings

PROCESSES = 3
BUCKETS = (1.0, 2.5, 10.0)

amounts = st.integers(0, 80).map(lambda eighths: eighths / 8)
signed = st.integers(-80, 80).map(lambda eighths: eighths / 8)
labels = st.sampled_from(["a", "b", "", "ü", 'say "\\\n"'])
operations = st.lists(
    st.tuples(
        st.integers(0, PROCESSES - 1),
        st.one_of(
            st.tuples(st.just("count"), labels, amounts),
            st.tuples(st.just("observe"), labels, amounts),  # a sum that can fall is shown without a type
            st.tuples(st.just("raise_level"), labels, signed),
            st.tuples(st.just("set_latest"), labels, signed),
            st.tuples(st.just("count_plain"), st.just(""), amounts),
        ),
    ),
    max_size=40,
)
Program: TypeAlias = list[tuple[int, tuple[str, str, float]]]


class Instruments:
    """The operations on either module's instruments: their signatures are the same."""

    def __init__(self, module: Any, **more: Any) -> None:
        self._counter = module.Counter("oracle_things", "Things counted.", ["who"], **more)
        self._plain = module.Counter("oracle_plain_total", "Without labels.", **more)
        self._sizes = module.Histogram("oracle_sizes", "Sizes.", ["who"], buckets=BUCKETS, **more)
        self._level = module.Gauge("oracle_level", "A level.", ["who"], **more)
        self._latest = module.Gauge("oracle_latest", "The latest.", ["who"], multiprocess_mode="mostrecent", **more)

    def count(self, who: str, amount: float) -> None:
        self._counter.labels(who).inc(amount)

    def count_plain(self, _: str, amount: float) -> None:
        self._plain.inc(amount)

    def observe(self, who: str, amount: float) -> None:
        self._sizes.labels(who=who).observe(amount)

    def raise_level(self, who: str, amount: float) -> None:
        if amount >= 0:
            self._level.labels(who).inc(amount)
        else:
            self._level.labels(who).dec(-amount)

    def set_latest(self, who: str, value: float) -> None:
        self._latest.labels(who).set(value)


class JobmetricsInstruments(Instruments):
    """The instruments of jobmetrics, in a process that runs many programs, each in another directory."""

    def __init__(self) -> None:
        super().__init__(jobmetrics)

    def begin(self, path: str) -> None:
        from jobmetrics import runtime

        runtime.use(runtime.Runtime())
        settings.configure(dir=path, propagate_errors=True)
        super().__init__(jobmetrics)


def _serve(pipe: Connection) -> None:
    serve(JobmetricsInstruments(), pipe)


@pytest.fixture(scope="module")
def processes() -> Iterator[list[Child]]:
    with children([_serve] * PROCESSES) as started:
        yield started


def _exposition(path: Path) -> str:
    found = readings.snapshot(path)

    class Shown:
        def collect(self) -> Any:
            return Exposition("", {}, ThrottledLog()).metrics(found.families)

    registry = CollectorRegistry()
    registry.register(Shown())
    return generate_latest(registry).decode()


def _samples(text: str) -> dict[tuple[str, str], dict[tuple[str, tuple[tuple[str, str], ...]], float]]:
    """Families with samples of an exposition, without creation timestamps, which jobmetrics does not keep."""
    said = {}
    for family in text_string_to_metric_families(text):
        samples = {
            (sample.name, tuple(sorted(sample.labels.items()))): sample.value
            for sample in family.samples
            if not sample.name.endswith("_created")
        }
        if samples and not family.name.endswith("_created"):
            said[family.name, family.type] = samples
    return said


@hypothesis_settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(program=operations)
def test_expositions_agree(program: Program, processes: list[Child], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("oracle") / "registry"
    registry = CollectorRegistry()
    peer = Instruments(prometheus_client, registry=registry)
    for process in processes:
        process.ask("begin", str(path))
    for number, (name, who, amount) in program:
        processes[number].ask(name, who, amount)
        getattr(peer, name)(who, amount)
    if path.exists():
        ours, theirs = _samples(_exposition(path)), _samples(generate_latest(registry).decode())
        assert ours == theirs
        shutil.rmtree(path)
