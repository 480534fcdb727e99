"""The tests run with the versions that pip installs today with the built wheel and all its extras.

It fails when a dependency has a release that constraints.txt does not name yet: the tests have not run with it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support import servers
from tests.support.compose import ROOT
from tests.unit.test_project import applies, constraints, normal

pytestmark = pytest.mark.full

HANG_SECONDS = 280.0


def pip(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    return subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=HANG_SECONDS, check=False
    )  # fmt: skip


def resolved(requirement: str, report: Path) -> dict[str, str]:
    """The version of each package that pip would install in a fresh environment, by name."""
    options = ("--quiet", "--dry-run", "--ignore-installed", "--report", str(report))
    done = pip("install", *options, requirement)
    if done.returncode != 0 and pip("install", *options, "--no-deps", "click").returncode != 0:
        servers.unavailable("no package index answers")
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(report.read_text())["install"]
    return {normal(each["metadata"]["name"]): each["metadata"]["version"] for each in found}


def test_all_extras_install_the_versions_of_the_constraints(tmp_path: Path) -> None:
    built = pip("wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", str(tmp_path), str(ROOT))
    assert built.returncode == 0, built.stderr
    (wheel,) = tmp_path.glob("jobmetrics-*.whl")
    found = resolved(f"jobmetrics[all] @ {wheel.as_uri()}", tmp_path / "report.json")
    assert found.pop("jobmetrics") == wheel.name.split("-")[1]
    assert {"celery", "redis", "rq", "prometheus-client", "uvicorn"} <= found.keys()
    pinned = {normal(each.name): each.specifier for each in constraints() if applies(each)}
    differing = {
        name: f"pip installs {version}, constraints.txt has {pinned.get(name, 'none')}"
        for name, version in found.items()
        if name not in pinned or not pinned[name].contains(version)
    }
    assert differing == {}
