from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

if sys.version_info < (3, 11):
    pytest.skip("grafana-foundation-sdk needs Python 3.11", allow_module_level=True)

import promql_parser
from grafana_foundation_sdk.cog import plugins
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as model

import dashboards
from dashboards.__main__ import main
from dashboards.promql import PROMETHEUS_OWN, SCRAPE_LABELS
from jobmetrics.families import BUILT_IN, COLLECTED, HISTOGRAM, Family
from tests.unit.grafana import DASHBOARDS, FOLDER, Json, every_panel, names, panels, values_of
from tests.unit.rows import each_row

# In Grafana's own plugins, and not on their way out as graph, singlestat, table-old and angular panels are.
PANEL_TYPES = {"heatmap", "stat", "state-timeline", "table", "timeseries"}

# What a dashboard needs no panel for, and why.
WITHOUT_PANEL: dict[str, str] = {}

PANELS = every_panel()
QUERIES = dashboards.queries()
SUFFIXES = {HISTOGRAM: ("_bucket", "_sum", "_count")}
SERIES: dict[str, Family] = {
    family.name + suffix: family for family in BUILT_IN for suffix in SUFFIXES.get(family.type, ("",))
}


def selectors(expression: str) -> list[promql_parser.VectorSelector]:
    found: list[promql_parser.VectorSelector] = []

    def visit(expr: promql_parser.Expr) -> None:
        if isinstance(expr, promql_parser.MatrixSelector):
            found.append(expr.vector_selector)
        elif isinstance(expr, promql_parser.VectorSelector):
            found.append(expr)

    promql_parser.walk(promql_parser.parse(expression), visit)
    return found


def test_the_files_match_the_generator() -> None:
    assert main(["--check"]) == 0, "run python -m dashboards"


def test_check_reports_stale_missing_and_stray_files_and_changes_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--check"], tmp_path) == 1
    assert list(tmp_path.iterdir()) == []
    assert main([], tmp_path) == 0
    assert main(["--check"], tmp_path) == 0
    (tmp_path / "jobmetrics-queues.json").write_text("{}")
    (tmp_path / "other.json").write_text("{}")
    capsys.readouterr()
    assert main(["--check"], tmp_path) == 1
    assert capsys.readouterr().out == "jobmetrics-queues.json: out of date\nother.json: no such dashboard\n"
    assert main([], tmp_path) == 0
    assert {path.name for path in tmp_path.iterdir()} == {path.name for path in FOLDER.iterdir()}


def test_five_dashboards_under_their_uids() -> None:
    wanted = {f"jobmetrics-{name}" for name in ("overview", "job-type", "queues", "workers", "exporter")}
    assert {dashboard["uid"] for dashboard in DASHBOARDS.values()} == wanted == set(DASHBOARDS)
    assert len({dashboard["title"] for dashboard in DASHBOARDS.values()}) == len(DASHBOARDS)
    assert all(len(uid) <= 40 for uid in DASHBOARDS)  # Grafana's limit


def _in_sight(part: Json) -> Json:
    """The SDK puts every link that it reads into the controls menu, where users rarely look."""
    return {name: value for name, value in part.items() if value != "inControlsMenu"}


@each_row(DASHBOARDS)
def test_grafana_reads_the_json_without_losing_anything(uid: str) -> None:
    plugins.register_default_plugins()
    read = model.Dashboard.from_json(DASHBOARDS[uid])
    again = json.loads(json.dumps(read, cls=JSONEncoder), object_hook=_in_sight)
    assert again == DASHBOARDS[uid]
    assert DASHBOARDS[uid]["schemaVersion"] == model.Dashboard().schema_version


@each_row(DASHBOARDS)
def test_every_panel_has_a_unique_id_and_title(uid: str) -> None:
    ids = [panel["id"] for panel in DASHBOARDS[uid]["panels"]]
    titles = [panel["title"] for panel in panels(DASHBOARDS[uid])]
    assert len(set(ids)) == len(ids)
    assert len(set(titles)) == len(titles)
    assert min(ids) > 0


@each_row(DASHBOARDS)
def test_panels_fill_the_grid_without_overlapping(uid: str) -> None:
    cells: set[tuple[int, int]] = set()
    for panel in DASHBOARDS[uid]["panels"]:
        at = panel["gridPos"]
        own = {(at["x"] + x, at["y"] + y) for x in range(at["w"]) for y in range(at["h"])}
        assert not own & cells, f"{panel['title']} lies on another panel"
        cells |= own
    height = max(y for _, y in cells) + 1
    assert cells == {(x, y) for x in range(24) for y in range(height)}, "a gap, or beyond the 24 columns"


@each_row(PANELS, lambda row: names([row])[0])
def test_a_panel_describes_its_contents_and_what_to_do(row: tuple[str, Json]) -> None:
    _, panel = row
    assert panel["type"] in PANEL_TYPES
    assert panel["fieldConfig"]["defaults"]["unit"]
    assert panel["fieldConfig"]["defaults"]["noValue"]
    sentences = [sentence for sentence in re.split(r"[.:;] ", panel["description"]) if sentence]
    assert len(sentences) >= 2, "what it shows, and what to do about it"
    assert panel["description"].endswith(".")
    assert panel["targets"]
    ids = [target["refId"] for target in panel["targets"]]
    assert len(set(ids)) == len(ids)


@each_row(DASHBOARDS)
def test_every_query_uses_the_chosen_data_source(uid: str) -> None:
    chosen = {"type": "prometheus", "uid": "${datasource}"}
    asking = [*panels(DASHBOARDS[uid]), *values_of("targets", DASHBOARDS[uid])]
    for one in asking:
        for part in one if isinstance(one, list) else [one]:
            assert part["datasource"] == chosen
    assert all(source == chosen for source in values_of("datasource", DASHBOARDS[uid]))
    first, *others = DASHBOARDS[uid]["templating"]["list"]
    assert (first["name"], first["type"], first["query"]) == ("datasource", "datasource", "prometheus")
    assert all("datasource" in variable for variable in others)


@each_row(DASHBOARDS)
def test_variables_take_several_values_or_all(uid: str) -> None:
    found = {variable["name"]: variable for variable in DASHBOARDS[uid]["templating"]["list"]}
    asked = {name: variable for name, variable in found.items() if variable["type"] == "query"}
    assert asked
    for variable in asked.values():
        assert variable["multi"]
        assert variable["includeAll"]
        assert variable["allValue"] == ".*"
    used = {
        name
        for expression in values_of("expr", DASHBOARDS[uid])
        for name in re.findall(r"\$\{(\w+)}", expression)
    }  # fmt: skip
    assert used == set(asked), "every variable is used in a panel, and every query's variables exist"
    # Any other matcher would compare the pattern of several values literally, and a format would escape it wrongly.
    for expression in values_of("expr", DASHBOARDS[uid]):
        assert len(re.findall(r'\w+=~"\$\{\w+}"', expression)) == expression.count("${")


def test_the_variables_are_those_that_operators_need() -> None:
    found = {uid: [v["name"] for v in dashboard["templating"]["list"]] for uid, dashboard in DASHBOARDS.items()}
    overview = ["datasource", "application", "system", "host", "broker", "queue", "job_type", "filters"]
    assert found["jobmetrics-overview"] == overview
    assert all({"datasource", "application"} < set(each) for each in found.values())


def test_every_queried_series_and_label_exists() -> None:
    for query in QUERIES:
        for selector in selectors(query.expression):
            matched = {matcher.name for matcher in selector.matchers.matchers}
            if selector.name in PROMETHEUS_OWN:
                assert matched <= {*SCRAPE_LABELS, "alertname", "alertstate"}
                continue
            assert selector.name in SERIES, f"{query.panel}: {selector.name}"
            assert matched <= {*SCRAPE_LABELS, *SERIES[selector.name].labels}, f"{query.panel}: {query.expression}"


def test_every_family_is_on_a_dashboard() -> None:
    shown = {selector.name for query in QUERIES for selector in selectors(query.expression)}
    shown_families = {family.name for name, family in SERIES.items() if name in shown}
    assert {family.name for family in BUILT_IN} - shown_families == set(WITHOUT_PANEL)


def test_readings_of_one_broker_by_several_exporters_count_once() -> None:
    asked = set()
    for query in QUERIES:
        for family in BUILT_IN:
            if family.source != COLLECTED or "collector" in family.labels:
                continue
            times = len(re.findall(rf"\b{family.name}\b", query.expression))
            once = rf"max by \(job, {', '.join(family.labels)}\) \((?:deriv\()?{family.name}\b"
            assert len(re.findall(once, query.expression)) == times, f"{query.panel}: {query.expression}"
            asked |= {family.name} if times else set()
    assert len(asked) > 10


def test_a_host_does_not_hide_the_readings_of_another_host() -> None:
    for query in QUERIES:
        for selector in selectors(query.expression):
            family = SERIES.get(selector.name or "")
            if family is not None and family.source == COLLECTED and "collector" not in family.labels:
                assert "instance" not in {matcher.name for matcher in selector.matchers.matchers}


def test_queries_are_promql_without_grafana_variables() -> None:
    for query in dashboards.queries(rate_interval="7s", interval="3s", time_range="11m"):
        promql_parser.parse(query.expression)
        assert "$" not in query.expression
    expressions = " ".join(query.expression for query in dashboards.queries(rate_interval="7s", time_range="11m"))
    assert "[7s]" in expressions
    assert "[11m]" in expressions


def test_queries_are_those_of_the_files() -> None:
    targets = [
        target for dashboard in DASHBOARDS.values() for found in values_of("targets", dashboard) for target in found
    ]
    assert len(QUERIES) == len(targets)
    assert {query.dashboard for query in QUERIES} == set(DASHBOARDS)
    assert {query.panel for query in QUERIES} == {panel["title"] for _, panel in PANELS}
    assert any(query.instant for query in QUERIES)
    assert not all(query.instant for query in QUERIES)


def test_label_values_are_those_of_the_variables() -> None:
    found = {(asked.dashboard, asked.variable) for asked in dashboards.label_values()}
    wanted = {
        (uid, variable["name"])
        for uid, dashboard in DASHBOARDS.items()
        for variable in dashboard["templating"]["list"]
        if variable["type"] == "query"
    }
    assert found == wanted
    for asked in dashboards.label_values():
        promql_parser.parse(asked.selector)
        assert "$" not in asked.selector


def test_links_lead_to_dashboards_and_variables_that_exist() -> None:
    found = [url for dashboard in DASHBOARDS.values() for url in values_of("url", dashboard)]
    assert len(found) > 5
    for url in found:
        uid = re.fullmatch(r"/d/([\w-]+)\?\$\{__url_time_range}&(.+)", url)
        assert uid is not None, url
        there = {variable["name"] for variable in DASHBOARDS[uid[1]]["templating"]["list"]}
        passed = re.findall(r"\$\{(\w+):queryparam}|var-(\w+)=", uid[2])
        assert {name or chosen for name, chosen in passed} <= there, url


def test_each_dashboard_links_to_all_with_the_variables_and_the_time_kept() -> None:
    for dashboard in DASHBOARDS.values():
        (link,) = dashboard["links"]
        assert "placement" not in link, "visible, not in a menu"
        assert (link["type"], link["tags"]) == ("dashboards", ["jobmetrics"])
        assert link["includeVars"]
        assert link["keepTime"]
        assert dashboard["tags"] == ["jobmetrics"]


def test_exceptions_name_panels_that_exist() -> None:
    assert set(dashboards.MAY_BE_EMPTY) <= {panel["title"] for _, panel in PANELS}
