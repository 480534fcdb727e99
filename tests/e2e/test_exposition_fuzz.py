"""Names, labels, help texts and buckets of every kind, recorded in every way: Prometheus accepts the exposition."""

from __future__ import annotations

import collections
import math
import random
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from jobmetrics import Counter, Gauge, Histogram, configure, duration, increment, observe, set_gauge, timed_job
from jobmetrics.collector_api import CollectorOptions
from jobmetrics.errors import InstrumentError
from jobmetrics.exporter.app import build
from jobmetrics.families import HISTOGRAM
from tests.multiprocess.support import in_child

TEXT = "text/plain"
OPENMETRICS = "application/openmetrics-text; version=1.0.0"

USES = 150  # in one directory

# Names seen in practice that are invalid, or nearly so.
NAMES: Sequence[Any] = (
    "", "_total", "_", "__", ":", "a:b", "orders", "orders_total", "orders_total_total", "orders_created",
    "orders_bucket", "orders_count", "orders_sum", "orders_info", "orders_seconds", "_seconds", "seconds", "total",
    "jobs", "jobs_total", "jobmetrics_invalid_families", "le", "quantile", "1st", "two words", "a-b", "a.b", "größe",
    "a\n", "a\0b", "\ud800", "#", "a{b}", "EOF", "# EOF", "a" * 127, "a" * 128, "a" * 500, None, 5, b"bytes",
)  # fmt: skip
LABELS: Sequence[Any] = (
    "", "a", "b", "le", "quantile", "job", "instance", "__name__", "__a", "_", "1a", "a-b", "größe", "a\n", "a b",
    "x" * 64, "x" * 65, "version", "state",
)  # fmt: skip
TEXTS: Sequence[Any] = (
    "", " ", "plain", 'quo"te', "back\\slash", "\\", '\\"', "\\n", "new\nline", "\n", "car\rriage", "\r\n", "tab\t",
    "nul\0", "ümläut", "\U0001f600", "\ud800", "\udcff", "\u2028", "\x85", "\x1b[31m", "\x0b\x0c\x1c", "# EOF",
    '"} 1\nevil 1', "{}", "=", ",", "x" * 256, "ü" * 257, "x" * 5000, None, 5, 1.5, b"bytes", (), True,
)  # fmt: skip
BUCKETS: Sequence[Any] = (
    (1,), (0.1, 1, 10), (-5, 0, 5), (1, math.inf), (5e-324, 1.7976931348623157e308), (1e16, 1e17), (0.1 + 0.2, 0.4),
    tuple(range(128)), (), None, (2, 1), (1, 1), (math.nan,), (-math.inf, 0), (math.inf,), ("1", "2"), "1,2", ("x",),
    tuple(range(129)), (1, None),
)  # fmt: skip
NUMBERS: Sequence[Any] = (0, 1, 2.5, -1, 1e300, 5e-324, 0.1, True, math.nan, math.inf, None, "5")


class Uses:
    """Random uses of one process, from a seed."""

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.accepted = 0
        self.refused: list[str] = []

    def name(self) -> Any:
        if self._random.random() < 0.3:
            return self._random.choice(NAMES)
        return self._text("abz_:19-.é ", 12) or "x"

    def label(self) -> Any:
        return self._random.choice(LABELS) if self._random.random() < 0.3 else self._text("abz_19-", 6)

    def value(self) -> Any:
        if self._random.random() < 0.5:
            return self._random.choice(TEXTS)
        return self._text('a"\\\n\r\t\0{}=, #é\u2028\U0001f600\ud800', 12)

    def number(self) -> Any:
        return self._random.choice(NUMBERS)

    def _text(self, alphabet: str, most: int) -> str:
        return "".join(self._random.choices(alphabet, k=self._random.randint(0, most)))

    def one(self) -> None:
        """Define and use one instrument; only errors of its definition are expected."""
        use: Callable[[], None] = self._random.choice(
            [self.counter, self.gauge, self.histogram, self.ad_hoc, self.timed, self.job]
        )
        try:
            use()
        except InstrumentError as error:
            self.refused.append(str(error))
        else:
            self.accepted += 1

    def _defined(self, kind: Any, **more: Any) -> Any:
        names = [self.label() for _ in range(self._random.choice([0, 0, 1, 2, 3]))]
        for part in ("namespace", "subsystem", "unit"):
            if self._random.random() < 0.2:
                more[part] = self._random.choice(["", "acme", "bytes", "total", "a b", "_", "seconds"])
        metric = kind(self.name(), self.value(), names, **more)
        return metric.labels(*(self.value() for _ in names)) if names else metric

    def counter(self) -> None:
        self._defined(Counter).inc(self.number())

    def gauge(self) -> None:
        mode = self._random.choice(["livesum", "sum", "max", "min", "mostrecent", "mostrecent"])
        self._defined(Gauge, multiprocess_mode=mode).set(self.number())

    def histogram(self) -> None:
        self._defined(Histogram, buckets=self._random.choice(BUCKETS)).observe(self.number())

    def _labels(self) -> dict[str, Any]:
        return {str(self.label()): self.value() for _ in range(self._random.choice([0, 1, 2]))}

    def ad_hoc(self) -> None:
        """Bad values are counted, and never raise in a job."""
        self._random.choice([increment, set_gauge, observe])(self.name(), self.number(), **self._labels())

    def timed(self) -> None:
        with duration(self.name(), **self._labels()):
            pass

    def job(self) -> None:
        timed_job(name=str(self.value()))(lambda: None)()


def check(page: Any, accept: str, parse: Callable[[str], Any]) -> dict[str, list[Any]]:
    """A page's samples, by family."""
    text = page.write(accept)[0].decode()
    found = {family.name: family.samples for family in parse(text)}
    keys = [(sample.name, *sorted(sample.labels.items())) for samples in found.values() for sample in samples]
    assert len(set(keys)) == len(keys), "a series appears twice"
    if accept == TEXT and shutil.which("promtool"):
        done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, text=True, check=False)
        assert done.returncode in (0, 3), done.stderr  # 3: promtool criticises the style of a name
    return found


def run(path: Path, seed: int) -> None:
    """One process records all kinds of things, and all of them are shown."""
    made = configure(dir=str(path), max_series=1000)
    increment("canary", 7)
    uses = Uses(seed)
    for _ in range(USES):
        uses.one()
    assert uses.accepted > USES / 10
    assert [text for text in uses.refused if not text or "\n" in text] == [], "one line each"
    exporter = build(made, CollectorOptions())
    for accept, parse in ((TEXT, parse_text), (OPENMETRICS, parse_openmetrics)):
        found = check(exporter.metrics, accept, parse)
        assert [sample.value for sample in found["canary"]] == [7.0]
        assert [sample.value for sample in found["jobmetrics_invalid_families"]] == [0.0]
        snapshot = exporter.directory.read().snapshot
        assert snapshot is not None
        shown = collections.Counter(sample.name for samples in found.values() for sample in samples)
        for family, samples in snapshot.families:
            name = f"{family.name}_count" if family.type == HISTOGRAM else family.name
            assert shown[name] == len(samples), name
    exporter.close()


def sizes(few: int, many: int) -> pytest.MarkDecorator:
    """Seeds: a few in make test, many in make test-all."""
    rest = [pytest.param(seed, marks=pytest.mark.full) for seed in range(few, many)]
    return pytest.mark.parametrize("seed", [*range(few), *rest])


@sizes(4, 120)
def test_prometheus_accepts_everything_that_can_be_recorded(seed: int, registry_dir: Path) -> None:
    in_child(lambda: run(registry_dir, seed))
