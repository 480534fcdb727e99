"""Families and samples as Prometheus sees them, in both formats."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as openmetrics_exposition
from prometheus_client.openmetrics import parser as openmetrics_parser
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

from jobmetrics import families
from jobmetrics.collector_api import CollectorOptions
from jobmetrics.errors import SettingsError
from jobmetrics.exporter.app import build
from jobmetrics.exporter.metrics_page import Exposition, MetricsPage
from jobmetrics.families import COUNTER, GAUGE, HISTOGRAM, Family
from jobmetrics.instruments import BoundCounter
from jobmetrics.log_throttle import ThrottledLog
from jobmetrics.registry.read import Sample
from jobmetrics.registry.write.writer import Writer
from jobmetrics.settings import load
from tests.unit.doubles import die

# These two have no type hints.
write_openmetrics: Any = openmetrics_exposition.generate_latest
parse_openmetrics: Any = openmetrics_parser.text_string_to_metric_families

Groups = Sequence[tuple[Family, Sequence[Sample]]]


class _Fixed(Collector):
    def __init__(self, metrics: list[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


def shown(groups: Groups, namespace: str = "", **labels: str) -> str:
    """Render the text format, and check that both formats can be parsed."""
    return written(Exposition(namespace, labels, ThrottledLog()).metrics(groups))


def written(metrics: list[Metric]) -> str:
    """The same in OpenMetrics."""
    text = generate_latest(_Fixed(metrics)).decode()
    list(text_string_to_metric_families(text))
    open_text = write_openmetrics(_Fixed(metrics)).decode()
    list(parse_openmetrics(open_text))
    return text


def test_a_histogram_is_cumulative_and_its_count_is_the_inf_bucket() -> None:
    family = Family("x_seconds", HISTOGRAM, "Help.", ("a",), buckets=(0.5, 2.0), unit="seconds")
    assert shown([(family, [Sample(("v",), buckets=(1.0, 0.0, 2.0), sum=9.5)])]).splitlines() == [
        "# HELP x_seconds Help.",
        "# TYPE x_seconds histogram",
        'x_seconds_bucket{a="v",le="0.5"} 1.0',
        'x_seconds_bucket{a="v",le="2.0"} 1.0',
        'x_seconds_bucket{a="v",le="+Inf"} 3.0',
        'x_seconds_count{a="v"} 3.0',
        'x_seconds_sum{a="v"} 9.5',
    ]


@pytest.mark.parametrize(("bounds", "total"), [((-1.0, 1.0), 3.0), ((1.0, 2.0), -3.0)], ids=["bound", "sum"])
def test_a_histogram_with_a_sum_that_can_fall_has_no_type(bounds: tuple[float, ...], total: float) -> None:
    """OpenMetrics does not allow such a histogram: a strict parser refuses the page. Its samples are kept."""
    family = Family("x", HISTOGRAM, "Help.", ("a",), buckets=bounds)
    text = shown([(family, [Sample((value,), buckets=(1.0, 0.0, 2.0), sum=total) for value in "vw"])])
    assert "# TYPE x untyped" in text
    for value in "vw":
        assert f'x_count{{a="{value}"}} 3.0' in text
        assert f'x_sum{{a="{value}"}} {total}' in text


def test_a_colon_in_a_name_stays_in_both_formats() -> None:
    groups: Groups = [(Family("a:b_total", COUNTER, "Help."), [Sample((), 1.0)])]
    page = MetricsPage(lambda: Exposition("", {}, ThrottledLog()).metrics(groups))
    openmetrics = "application/openmetrics-text"
    for accept in (
        "",
        openmetrics,
        f"{openmetrics};version=1.0.0;escaping=underscores",
        f"{openmetrics};version=0.0.1",
    ):
        assert b"\na:b_total 1.0\n" in page.write(accept)[0]


def test_counters_gauges_namespace_and_constant_labels() -> None:
    counter = Family("x_total", COUNTER, "C.", ("a",))
    gauge = Family("y", GAUGE, "G.")
    text = shown([(counter, [Sample(("v",), 2.0)]), (gauge, [Sample((), -1.5)])], "acme", env="prod")
    assert 'acme_x_total{a="v",env="prod"} 2.0' in text
    assert 'acme_y{env="prod"} -1.5' in text
    assert "_created" not in text


def test_a_metrics_label_overrides_a_constant_one() -> None:
    family = Family("y", GAUGE, "G.", ("env",))
    assert 'y{env="own"} 1.0' in shown([(family, [Sample(("own",), 1.0)])], env="constant")


def test_families_without_samples_are_still_declared() -> None:
    assert shown([(families.JOBS, [])]).splitlines() == [
        "# HELP jobs_total Executions that started and ended, by how they ended.",
        "# TYPE jobs_total counter",
    ]


def test_every_built_in_family_can_be_shown_beside_all_others(caplog: pytest.LogCaptureFixture) -> None:
    def sample(family: Family) -> Sample:
        values = tuple("v" for _ in family.labels)
        return Sample(values, 1.0, buckets=(1.0,) * (len(family.buckets) + 1), sum=1.0)

    with caplog.at_level(logging.WARNING):
        text = shown([(family, [sample(family)]) for family in families.BUILT_IN], "ns", constant="c")
    found = {line.split()[2] for line in text.splitlines() if line.startswith("# TYPE")}
    assert found == {f"ns_{family.name}" for family in families.BUILT_IN}
    assert not caplog.records


@pytest.mark.parametrize(
    ("theirs", "type_"),
    [
        ("jobs_total", GAUGE),
        ("jobs", GAUGE),
        ("jobs_total", COUNTER),
        ("jobs_duration_seconds_count", GAUGE),
        ("jobs_duration_seconds_sum_total", COUNTER),
        ("jobs_duration_seconds", HISTOGRAM),
    ],
)
def test_a_user_metric_with_a_conflicting_name_is_left_out_and_logged_once(
    theirs: str, type_: str, caplog: pytest.LogCaptureFixture
) -> None:
    clash = (Family(theirs, type_, "Theirs."), [Sample((), 5.0, buckets=(5.0,), sum=5.0)])
    exposition = Exposition("", {}, ThrottledLog())
    own = [(families.JOBS, [Sample(("celery", "t", "q", "success"), 1.0)]), (families.JOBS_DURATION, [])]
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            metrics = exposition.metrics([clash, *own])
    assert [metric.documentation for metric in metrics] == [families.JOBS.help, families.JOBS_DURATION.help]
    (record,) = caplog.records
    assert theirs in record.getMessage()


@pytest.mark.parametrize(
    "family",
    [
        Family("no name", GAUGE, ""),
        Family("x", "summary", ""),
        Family("x", GAUGE, "", ("a", "a")),
        Family("x", GAUGE, "", ("a b",)),
        Family("x", HISTOGRAM, "", ("le",)),
        Family("", GAUGE, ""),
        Family("_total", COUNTER, ""),
        Family("x", HISTOGRAM, "", buckets=(2.0, 1.0)),
        Family("x", HISTOGRAM, "", buckets=(1.0, 1.0)),
        Family("x", HISTOGRAM, "", buckets=(math.nan,)),
        Family("x", HISTOGRAM, "", buckets=(1.0, math.inf)),
        Family("x", GAUGE, "", ("__name__",)),
    ],
)
def test_a_declaration_of_a_foreign_writer_cannot_break_the_rest(family: Family) -> None:
    values = tuple("v" for _ in family.labels)
    text = shown([(family, [Sample(values, 1.0)]), (families.SERIES, [Sample((), 3.0)])])
    assert text.splitlines()[2:] == ["jobmetrics_series 3.0"]


def test_a_family_that_fails_in_the_middle_is_left_out_and_counted(caplog: pytest.LogCaptureFixture) -> None:
    """Whatever the reason: here fewer buckets than bounds."""
    broken = (Family("x", HISTOGRAM, "", buckets=(1.0, 2.0)), [Sample((), buckets=(1.0,), sum=1.0)])
    groups: Groups = [broken, (families.SERIES, [Sample((), 3.0)]), (Family("y", GAUGE, ""), [Sample((), 1.0)])]
    with caplog.at_level(logging.WARNING):
        metrics = Exposition("acme", {}, ThrottledLog()).metrics(groups, left_out=families.INVALID_FAMILIES)
    lines = [line for line in written(metrics).splitlines() if not line.startswith("#")]
    assert lines == ["acme_jobmetrics_series 3.0", "acme_y 1.0", "acme_jobmetrics_invalid_families 1.0"]
    (record,) = caplog.records
    assert "x is not shown" in record.getMessage()


def test_the_name_of_the_count_of_omitted_families_is_reserved() -> None:
    foreign = (Family(families.INVALID_FAMILIES.name, COUNTER, ""), [Sample((), 7.0)])
    metrics = Exposition("", {}, ThrottledLog()).metrics([foreign], left_out=families.INVALID_FAMILIES)
    assert [sample.value for metric in metrics for sample in metric.samples] == [1.0]


def test_the_name_of_a_family_that_is_left_out_is_free_for_the_next() -> None:
    broken = (Family("x", HISTOGRAM, "", buckets=(1.0, 2.0)), [Sample((), buckets=(1.0,), sum=1.0)])
    text = shown([broken, (Family("x_sum", COUNTER, ""), []), (Family("x", GAUGE, ""), [Sample((), 1.0)])])
    assert "\nx 1.0\n" in text


def test_values_of_every_kind_of_text_survive() -> None:
    odd = ('quo"te', "back\\slash", "new\nline", "ümläut", "\U0001f600", "lone\ud800surrogate", "")
    text = shown([(Family("y", GAUGE, "lone \ud800 too", ("a",)), [Sample((value,), 1.0) for value in odd])])
    found = [sample.labels["a"] for metric in text_string_to_metric_families(text) for sample in metric.samples]
    assert found == [*odd[:5], "lone\\ud800surrogate", ""]


def test_extreme_values_are_exact() -> None:
    values = (0.1 + 0.2, 2.0**53 + 2, 1e300, 5e-324, -0.0, math.inf)
    text = shown([(Family("y", GAUGE, "", ("a",)), [Sample((str(i),), v) for i, v in enumerate(values)])])
    found = [sample.value for metric in text_string_to_metric_families(text) for sample in metric.samples]
    assert found == list(values)


@pytest.mark.parametrize("label", ["system", "queue_name", "le", "broker", "state", "version"])
def test_a_constant_label_that_jobmetrics_uses_is_refused(label: str) -> None:
    with pytest.raises(SettingsError, match=label):
        Exposition("", {label: "x"}, ThrottledLog())


def test_openmetrics_names_the_unit_only_where_the_name_ends_with_it() -> None:
    metrics = Exposition("", {}, ThrottledLog()).metrics(
        [(families.JOBS_DURATION, []), (families.JOBS_DURATION_UNKNOWN, [])]
    )
    text = write_openmetrics(_Fixed(metrics)).decode()
    assert "# UNIT jobs_duration_seconds seconds" in text
    assert text.count("# UNIT") == 1


def test_the_ten_metrics_with_most_series_are_shown_with_their_number(registry_dir: Path) -> None:
    settings = load({}, dir=str(registry_dir))
    writer = Writer(settings)
    for metric in range(12):
        for user in range(metric + 1):
            BoundCounter(writer, Family(f"m{metric}_total", COUNTER, "", ("user",)), (str(user),)).inc()
    exporter = build(settings, CollectorOptions())
    try:
        (shown_,) = [each for each in exporter.scrape.collect() if each.name == families.SERIES_BY_METRIC.name]
    finally:
        exporter.close()
        die(writer)
    assert {line.labels["metric"]: line.value for line in shown_.samples} == {
        f"m{metric}_total": metric + 1 for metric in range(2, 12)
    }
