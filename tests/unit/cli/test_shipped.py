"""`jobmetrics rules` and `jobmetrics dashboards`: every series in them has the namespace of the exporter."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobmetrics.cli import main as entry
from jobmetrics.cli import shipped
from tests.support.promql import Checker, known_series
from tests.support.rule_files import ALERTS, RECORDING
from tests.unit.grafana import DASHBOARDS, values_of

NAMESPACE = "acme"
UNDER = {name if name == "up" else f"{NAMESPACE}_{name}": labels for name, labels in known_series().items()}


@pytest.fixture
def printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: str) -> str:
        monkeypatch.setattr(sys, "argv", ["jobmetrics", *arguments])
        with pytest.raises(SystemExit) as ended:
            entry.main()
        assert ended.value.code == 0
        return capsys.readouterr().out

    return run


def groups(*texts: str) -> list[Any]:
    return [group for text in texts for group in yaml.safe_load(text)["groups"]]


def test_without_a_namespace_the_rules_match_the_files(printed: Any) -> None:
    assert groups(printed("rules")) == groups(RECORDING.read_text(), ALERTS.read_text())


def test_rules_with_a_namespace_use_existing_series(printed: Any) -> None:
    known = dict(UNDER)
    rules = [rule for group in groups(printed("rules", "--namespace", NAMESPACE)) for rule in group["rules"]]
    assert len(rules) >= 50
    for rule in rules:
        labels = Checker(known).labels(rule["expr"])
        if "record" in rule:
            _, metric, _ = rule["record"].split(":")
            assert metric.startswith("acme_jobs_"), rule["record"]
            known[rule["record"]] = labels
    queries = re.findall(r"(?<![\w:/-])jobs?_\w+\{", " ".join(str(rule.get("annotations", "")) for rule in rules))
    assert queries == [], "an annotation has a series without the prefix"


def test_the_namespace_may_come_from_the_settings(printed: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBMETRICS_NAMESPACE", NAMESPACE)
    assert "acme_jobs_total" in printed("rules")


def test_without_a_namespace_the_dashboards_match_the_files(printed: Any) -> None:
    assert {each["uid"]: each for each in json.loads(printed("dashboards"))} == DASHBOARDS


def test_dashboards_with_a_namespace_use_existing_series(printed: Any, tmp_path: Path) -> None:
    names = printed("dashboards", "--namespace", NAMESPACE, "--output", str(tmp_path / "out")).split()
    assert [Path(name).stem for name in names] == sorted(DASHBOARDS)
    for name in names:
        before, after = DASHBOARDS[Path(name).stem], json.loads(Path(name).read_text())
        assert after["uid"] == before["uid"]
        for key in ("expr", "query"):
            texts = [text for text in values_of(key, after) if isinstance(text, str)]
            assert len(texts) == len([text for text in values_of(key, before) if isinstance(text, str)])
            for text in texts:
                assert not re.search(r"(?<![\w:-])(?:jobs|jobmetrics)_\w+", text), text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("rate(jobs_total[5m])", "rate(acme_jobs_total[5m])"),
        ("jobs_duration_seconds_bucket{le='1'}", "acme_jobs_duration_seconds_bucket{le='1'}"),
        ("job_type:jobs_success_age_seconds:min > 1", "job_type:acme_jobs_success_age_seconds:min > 1"),
        ("jobmetrics_series / jobmetrics_series_limit", "acme_jobmetrics_series / acme_jobmetrics_series_limit"),
        ("by (job, job_type)", "by (job, job_type)"),
        ("my_jobs_total + up", "my_jobs_total + up"),
        ("docs/runbook.md#jobstopped", "docs/runbook.md#jobstopped"),
    ],
)
def test_names_of_metrics_and_of_recorded_series_have_the_prefix(text: str, expected: str) -> None:
    assert shipped.with_namespace(text, NAMESPACE) == expected
    assert shipped.with_namespace(text, "") == text
