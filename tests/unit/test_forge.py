"""The files for a public forge: workflows, issue forms, hooks, and the usual files of a project."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
FORGE = ROOT / ".github"
WORKFLOWS = sorted((FORGE / "workflows").glob("*.yml"))
SCHEMAS = {
    "vendor.github-workflows": WORKFLOWS,
    "vendor.github-issue-forms": [FORGE / "ISSUE_TEMPLATE/bug.yml", FORGE / "ISSUE_TEMPLATE/feature.yml"],
    "vendor.github-issue-config": [FORGE / "ISSUE_TEMPLATE/config.yml"],
}


def commands(content: Any) -> list[str]:
    """The commands in the steps of a workflow or action."""
    if isinstance(content, dict):
        own = [content["run"]] if isinstance(content.get("run"), str) else []
        return own + [command for value in content.values() for command in commands(value)]
    return [command for each in content for command in commands(each)] if isinstance(content, list) else []


@pytest.mark.parametrize("schema", SCHEMAS)
def test_files_follow_the_schema(schema: str) -> None:
    assert SCHEMAS[schema]
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema]
    done = subprocess.run([*command, *map(str, SCHEMAS[schema])], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_schema_finds_a_mistake(tmp_path: Path) -> None:
    wrong = tmp_path / "ci.yml"
    wrong.write_text(WORKFLOWS[0].read_text().replace("runs-on:", "run-on:"))
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.github-workflows", str(wrong)]
    assert subprocess.run(command, capture_output=True, check=False).returncode == 1


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_workflows_run_existing_targets(path: Path) -> None:
    makefile = (ROOT / "Makefile").read_text()
    lanes = re.search(r"^LANES := (.*)$", makefile, re.MULTILINE)
    assert lanes
    for command in commands(yaml.safe_load(path.read_text())):
        for target in re.findall(r"\bmake ([a-z-]+)(?=\s|$)", command):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), command
        for file in re.findall(r"\btools/[\w./-]+", command):
            assert (ROOT / file).is_file(), command
    for lane in re.findall(r"lane: \[(.*)\]", path.read_text()):
        assert sorted(lane.split(", ")) == sorted(lanes[1].split())


def test_the_matrix_has_every_supported_python() -> None:
    matrix = yaml.safe_load((FORGE / "workflows/ci.yml").read_text())["jobs"]["test"]["strategy"]["matrix"]["python"]
    classifiers = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', (ROOT / "pyproject.toml").read_text())
    assert matrix == classifiers


def test_hooks_run_the_tools_of_the_environment() -> None:
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    makefile = (ROOT / "Makefile").read_text()
    assert [repository["repo"] for repository in config["repos"]] == ["local"]
    for hook in config["repos"][0]["hooks"]:
        assert hook["language"] == "system"
        program, argument, *_ = hook["entry"].split()
        if program == "make":
            assert re.search(rf"^{argument}:", makefile, re.MULTILINE), hook
        else:
            assert (ROOT / program).exists(), hook
    command = [sys.executable, "-m", "pre_commit", "validate-config", str(ROOT / ".pre-commit-config.yaml")]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


@pytest.mark.parametrize(
    "name", ["LICENSE", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md"]
)
def test_the_usual_files_exist(name: str) -> None:
    assert len((ROOT / name).read_text().splitlines()) > 10
