"""`celery -A app jobmetrics check`, as an operator runs it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from tests.integration.processes import ROOT, celery_worker


def _check(app: str, **environment: str) -> tuple[int, str]:
    answer = subprocess.run(
        [sys.executable, "-m", "celery", "-A", app, "jobmetrics", "check"],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    said = answer.stdout + answer.stderr
    return answer.returncode, "\n".join(re.sub(r"^(\w+) +", r"\1: ", line) for line in said.splitlines())


def test_celery_finds_the_command_by_its_entry_point() -> None:
    (found,) = entry_points(group="celery.commands", name="jobmetrics")
    assert found.value == "jobmetrics.celery.command:command"


def test_an_app_without_the_plugin_gets_instructions(tmp_path: Path, registry_dir: Path) -> None:
    (tmp_path / "bare.py").write_text("from celery import Celery\napp = Celery('bare')\n")
    code, said = _check("bare", PYTHONPATH=str(tmp_path), JOBMETRICS_DIR=str(registry_dir))
    assert code == 1
    assert "PROBLEM: this app is not instrumented; add imports" in said
    assert "jobmetrics.celery.plugin" in said


def test_the_check_before_any_worker_reports_no_directory(tmp_path: Path) -> None:
    code, said = _check("tests.integration.celery_tasks", JOBMETRICS_DIR=str(tmp_path / "none"))
    assert code == 1
    assert "ok: this app is instrumented" in said
    assert f"PROBLEM: {tmp_path / 'none'} does not exist: nothing has recorded here" in said
    assert not (tmp_path / "none").exists(), "the check makes no directory"


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("JOBMETRICS_ENABLED", "false", "PROBLEM: recording is off; "),
        ("JOBMETRICS_MAX_SERIES", "many", "PROBLEM: JOBMETRICS_MAX_SERIES='many'"),
        ("JOBMETRICS_PORT", "tcp://10.0.0.1:9909", "note: JOBMETRICS_PORT is not a setting and is ignored"),
    ],
)
def test_an_invalid_environment_variable_is_reported(name: str, value: str, message: str, registry_dir: Path) -> None:
    code, said = _check("tests.integration.celery_tasks", **{"JOBMETRICS_DIR": str(registry_dir), name: value})
    assert code == 1, "a worker does not record either"
    assert message in said


def test_the_check_shows_a_running_worker(redis_url: str, registry_dir: Path, tmp_path: Path) -> None:
    environment = {"BROKER": redis_url, "JOBMETRICS_DIR": str(registry_dir)}
    with celery_worker(environment, tmp_path / "log", "--concurrency=1"):
        code, said = _check("tests.integration.celery_tasks", **environment)
    assert "PROBLEM" not in said
    assert f"ok: {registry_dir}, mode 700" in said
    assert "wrong" in said.splitlines()[-1]
    assert "1 slots" in said or "2 slots" in said
    assert code == 0
