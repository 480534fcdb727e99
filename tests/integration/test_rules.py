"""promtool checks the rules and the shipped configuration. The expected alerts are in rules/tests."""

from __future__ import annotations

import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobmetrics.cli.shipped import with_namespace
from tests.e2e.prometheus_api import PrometheusApi
from tests.incidents.staging import openmetrics
from tests.incidents.worlds import Usual
from tests.support import servers
from tests.support.rule_files import ALERTS, RECORDING, ROOT, TESTS

PROMETHEUS = ROOT / "deploy" / "prometheus" / "prometheus.yml"
ALERTMANAGER = ROOT / "deploy" / "alertmanager" / "alertmanager.yml"
LIMIT = 240.0  # seconds; limit for a hung promtool


def promtool(*arguments: str | Path) -> None:
    done = subprocess.run(
        [servers.program("promtool"), *arguments], capture_output=True, text=True, timeout=LIMIT, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_accepts_the_rules() -> None:
    promtool("check", "rules", RECORDING, ALERTS)


@pytest.mark.parametrize("namespace", ["", "acme"])
def test_promtool_accepts_the_rules_that_the_command_prints(namespace: str, tmp_path: Path) -> None:
    (tmp_path / "rules.yml").write_text(printed_rules(namespace))
    promtool("check", "rules", tmp_path / "rules.yml")


@pytest.mark.full
@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.name)
def test_each_alert_fires_under_a_namespace_too(path: Path, tmp_path: Path) -> None:
    (tmp_path / "rules.yml").write_text(printed_rules("acme"))
    text = re.sub(r"(?m)^rule_files:\n(  - .*\n)+", "rule_files:\n  - rules.yml\n", path.read_text())
    (tmp_path / path.name).write_text(with_namespace(text, "acme"))
    promtool("test", "rules", tmp_path / path.name)


def printed_rules(namespace: str) -> str:
    options = ["--namespace", namespace] if namespace else []
    done = subprocess.run(
        [sys.executable, "-m", "jobmetrics", "rules", *options], capture_output=True, text=True, check=True
    )
    return done.stdout


def test_promtool_accepts_the_shipped_configuration(tmp_path: Path) -> None:
    (tmp_path / "prometheus.yml").write_text(PROMETHEUS.read_text())
    (tmp_path / "rules").symlink_to(RECORDING.parent)  # beside it, as a comment in the file requires
    promtool("check", "config", "--lint=all", "--lint-fatal", tmp_path / "prometheus.yml")


def test_amtool_accepts_the_configuration_of_alertmanager() -> None:
    done = subprocess.run(
        [servers.program("amtool"), "check-config", ALERTMANAGER], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.full
@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.name)
def test_each_alert_fires_when_it_should_and_not_otherwise(path: Path) -> None:
    promtool("test", "rules", path)


def test_the_history_of_a_staged_world_is_found() -> None:
    history = "".join(openmetrics({"slow-job": Usual(seconds=0.11, every=2.0)}, time.time()))
    with servers.prometheus_server("{}", history) as server:
        api = PrometheusApi(server.url)
        of_world = '{job="slow-job",job_type="tests.incidents.jobs.resize"}'
        assert api.finds(f"job_type:jobs_duration_seconds:p99_high1w{of_world} offset 1d > 0.1")
        assert api.finds(f"job_type:jobs_duration_seconds:p95_rate30m{of_world} < 0.25")
        usual = (
            f"sum_over_time(job_type_status:jobs_total:increase15m{of_world}[1w:15m] offset 30m) > 24 * 4 * 450 * 0.9"
        )
        assert api.finds(usual)
