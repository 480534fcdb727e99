from __future__ import annotations

import functools
import re

import pytest
import yaml

from tests.incidents.worlds import UNSTAGED, WORLDS, World
from tests.support.promql import Checker, Labels, Mistake, known_series
from tests.support.rule_files import ALERTS, RECORDING, ROOT, TESTS, Rule, alerts, rules
from tests.unit.documents import blocks, code_words
from tests.unit.rows import each_row

RUNBOOK = ROOT / "docs" / "runbook.md"
ALERTMANAGER = ROOT / "deploy" / "alertmanager" / "alertmanager.yml"
PROMETHEUS = ROOT / "deploy" / "prometheus" / "prometheus.yml"
SEVERITIES = {"critical", "warning"}
PARTS = ("What it means", "How to look", "What to do", "When to tune")


@functools.cache
def labels_of_rules() -> dict[str, Labels]:
    """The labels of each rule's result; recorded series are known to the rules after it."""
    known = known_series()
    found = {}
    for rule in rules():
        found[rule.name] = Checker(known).labels(rule.expression)
        if not rule.is_alert:
            assert rule.name not in known, f"{rule.name} is recorded twice"
            known[rule.name] = found[rule.name]
    return found


# ---------------------------------------------------------------- checked against the families


def test_every_rule_uses_existing_series_and_labels() -> None:
    assert len(labels_of_rules()) == len(rules())


@pytest.mark.parametrize(
    ("expression", "mistake"),
    [
        ("jobs_totals", "no series 'jobs_totals'"),
        ("sum by (jobtype) (rate(jobs_total[5m]))", "no label 'jobtype'"),
        ('jobs_total{state="failure"}', "no label 'state'"),
        ('jobs_total{status="failed"}', "status is never 'failed'"),
        ("jobs_workers / on (queue_name) jobs_worker_capacity", "no label 'queue_name'"),
        ("sum by (job, system) (jobs_active) / jobs_worker_capacity", "never match"),
        ("histogram_quantile(0.9, sum by (job) (rate(jobs_duration_seconds_bucket[5m])))", "no label 'le'"),
        ("rate(jobs_duration_seconds[5m])", "no series"),
    ],
)
def test_a_mistake_in_an_expression_is_found(expression: str, mistake: str) -> None:
    with pytest.raises(Mistake, match=mistake):
        Checker(known_series()).labels(expression)


@each_row([rule for rule in rules() if not rule.is_alert], lambda rule: rule.name)
def test_a_recorded_series_is_named_for_its_level_metric_and_operations(rule: Rule) -> None:
    level, metric, operations = rule.name.split(":")
    assert operations
    levels = {
        "job_type": {"job", "system", "job_type"},
        "job_type_status": {"job", "system", "job_type", "status"},
        "system": {"job", "system"},
        "instance": {"job", "instance", "system"},
        "instance_queue_name": {"job", "instance", "system", "queue_name"},
        "queue": {"job", "system", "broker", "queue_name"},
        "queue_name": {"job", "system", "queue_name"},
    }
    assert labels_of_rules()[rule.name] == levels[level]
    bare = metric.removesuffix("_age_seconds")  # an age is computed from a timestamp's family
    families = {*known_series(), "jobs_success", "jobs_queue_oldest"}
    assert {bare, f"{bare}_count"} & families, metric


# ---------------------------------------------------------------- texts for operators


@each_row(alerts(), lambda rule: rule.name)
def test_an_alert_has_a_severity_a_text_and_a_runbook_link(rule: Rule) -> None:
    assert rule.labels.keys() == {"severity"}
    assert rule.labels["severity"] in SEVERITIES
    assert rule.annotations.keys() == {"summary", "description", "runbook"}
    assert rule.annotations["runbook"] == f"docs/runbook.md#{rule.name.lower()}"
    assert rule.annotations["description"].endswith(".")


@each_row(alerts(), lambda rule: rule.name)
def test_an_alert_names_only_labels_that_it_has(rule: Rule) -> None:
    has = labels_of_rules()[rule.name]
    named = set(re.findall(r"\$labels\.(\w+)", " ".join(rule.annotations.values())))
    assert named <= has, f"{sorted(named - has)} would be empty"
    if has:
        assert named, "which one is it?"


def sections() -> dict[str, str]:
    """The runbook's sections on alerts, by their headings."""
    _, *found = re.split(r"^### ", RUNBOOK.read_text(), flags=re.MULTILINE)
    named = (section.partition("\n") for section in found)
    return {heading.strip(): body for heading, _, body in named}


def test_alerts_and_sections_of_the_runbook_match() -> None:
    assert [*sections()] == [rule.name for rule in alerts()]


@each_row(alerts(), lambda rule: rule.name)
def test_a_section_has_its_required_parts(rule: Rule) -> None:
    body = sections()[rule.name]
    assert [part for part in re.findall(r"\*\*(.+?)\.\*\*", body) if part in PARTS] == [*PARTS]
    assert f"`{rule.labels['severity']}`" in body


def queries() -> list[str]:
    """The blocks of PromQL and the inline expressions of the runbook, without bare names and without fragments."""
    inline = [code for code in code_words(RUNBOOK) if re.search(r"\bjob(s|metrics)_\w+.*[\[({=><]|time\(\)", code)]
    fenced = [block.text for block in blocks(RUNBOOK) if block.language == "promql"]
    return fenced + [code for code in inline if not code.startswith("and on")]


@each_row(queries(), lambda query: " ".join(query.split())[:70])
def test_a_query_of_the_runbook_can_find_something(query: str) -> None:
    Checker({**known_series(), **labels_of_rules()}).labels(query)


def test_the_runbook_names_only_existing_series() -> None:
    known = {*known_series(), *labels_of_rules()}
    named_series = set(re.findall(r"(?:\b\w+:)?\b(?:jobs|jobmetrics)_[a-z_]+(?::\w+)?\b", RUNBOOK.read_text()))
    histograms = {name.removesuffix("_bucket") for name in known}
    assert named_series <= known | histograms, sorted(named_series - known - histograms)


# ---------------------------------------------------------------- one notification for one incident


def matched(matchers: list[str]) -> list[str]:
    """The names of alerts that an inhibit rule's matchers name."""
    (matcher,) = matchers
    return matcher.removeprefix("alertname =").removeprefix("~").strip().split("|")


def inhibitions() -> list[tuple[str, str, list[str]]]:
    """Cause, consequence, and the labels that both have with equal values."""
    return [
        (cause, consequence, rule.get("equal", []))
        for rule in yaml.safe_load(ALERTMANAGER.read_text())["inhibit_rules"]
        for cause in matched(rule["source_matchers"])
        for consequence in matched(rule["target_matchers"])
    ]


@each_row(inhibitions(), lambda row: f"{row[0]} > {row[1]}")
def test_an_inhibit_rule_names_alerts_and_labels_that_they_have(row: tuple[str, str, list[str]]) -> None:
    cause, consequence, equal = row
    assert cause != consequence
    for name in (cause, consequence):
        assert set(equal) <= labels_of_rules()[name], name


@each_row(inhibitions(), lambda row: f"{row[0]} > {row[1]}")
def test_a_warning_does_not_hold_back_a_critical_alert(row: tuple[str, str, list[str]]) -> None:
    severity = {rule.name: rule.labels["severity"] for rule in alerts()}
    cause, consequence, _ = row
    assert (severity[cause], severity[consequence]) != ("warning", "critical")


# ---------------------------------------------------------------- files to be loaded and run


def test_the_shipped_configuration_loads_both_files_and_no_test() -> None:
    (pattern,) = yaml.safe_load(PROMETHEUS.read_text())["rule_files"]
    assert sorted(ROOT.glob(pattern)) == [ALERTS, RECORDING]


def test_every_alert_is_tested_firing_and_not_firing() -> None:
    fires: set[str] = set()
    silent: set[str] = set()
    for path in TESTS:
        for test in yaml.safe_load(path.read_text())["tests"]:
            for case in test["alert_rule_test"]:
                (fires if case["exp_alerts"] else silent).add(case["alertname"])
    names = {rule.name for rule in alerts()}
    assert fires == names
    assert silent == names


def test_promtool_evaluates_the_groups_in_the_order_of_the_files() -> None:
    order = list(dict.fromkeys(rule.group for rule in rules()))
    for path in TESTS:
        assert yaml.safe_load(path.read_text())["group_eval_order"] == order, path.name


# ---------------------------------------------------------------- the staged run (python -m tests.incidents)


def test_every_alert_is_staged_or_has_a_reason() -> None:
    staged = {name for world in WORLDS for name in world.expected}
    assert staged | UNSTAGED.keys() == {rule.name for rule in alerts()}
    assert not staged & UNSTAGED.keys()


@each_row(WORLDS, lambda world: world.name)
def test_a_staged_world_names_alerts_that_exist(world: World) -> None:
    assert {rule.name for rule in alerts()} >= {*world.expected, *world.consequences, *world.suppressed}
    assert (world.mend is None) == (not world.expected)
