"""Facts about the project that stand in two places, and promises its files make."""

from __future__ import annotations

import importlib.metadata
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

from jobmetrics.integration import System, find_systems

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PYTHONS = ("3.10", "3.11", "3.12", "3.13")


@pytest.fixture(scope="module")
def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text())


def constraints() -> list[Requirement]:
    lines = (ROOT / "constraints.txt").read_text().splitlines()
    return [Requirement(line) for line in lines if line and not line.startswith("#")]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def applies(requirement: Requirement, **environment: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate(environment)


def test_workers_need_nothing_beyond_the_standard_library(pyproject: dict[str, Any]) -> None:
    assert pyproject["project"]["dependencies"] == []
    installed = [Requirement(text) for text in importlib.metadata.requires("jobmetrics") or []]
    assert installed
    assert [str(each) for each in installed if applies(each, extra="")] == []


def test_version_is_the_installed_one(pyproject: dict[str, Any]) -> None:
    assert importlib.metadata.version("jobmetrics") == pyproject["project"]["version"]


def test_types_and_licence_are_shipped(pyproject: dict[str, Any]) -> None:
    assert (ROOT / "src/jobmetrics/py.typed").exists()
    assert pyproject["project"]["license"] == "Apache-2.0"
    assert "Apache License" in (ROOT / "LICENSE").read_text()


def test_entry_points_are_found() -> None:
    found = importlib.metadata.entry_points(group="jobmetrics.systems")
    assert {each.name: each.value for each in found} == {
        "celery": "jobmetrics.celery.system:CELERY",
        "rq": "jobmetrics.rq.system:RQ",
    }, "make setup installs the entry points of pyproject.toml"
    (command,) = importlib.metadata.entry_points(group="console_scripts", name="jobmetrics")
    assert command.value == "jobmetrics.cli.main:main"


def test_entry_points_load() -> None:
    for group in ("console_scripts", "jobmetrics.systems"):
        ours = [e for e in importlib.metadata.entry_points(group=group) if e.value.startswith("jobmetrics.")]
        assert ours
        for each in ours:
            loaded = each.load()
            assert isinstance(loaded, System) if group == "jobmetrics.systems" else callable(loaded), each


def test_systems_and_extras_name_the_same_oldest_versions(pyproject: dict[str, Any]) -> None:
    for system in find_systems().systems:
        (extra,) = Requirement(system.requirement).extras
        (requirement,) = map(Requirement, pyproject["project"]["optional-dependencies"][extra])
        assert (requirement.name, str(requirement.specifier)) == (system.package, f">={system.minimum}")


def test_constraints_are_exact_and_name_no_place() -> None:
    for each in constraints():
        assert each.url is None, each
        assert [part.operator for part in each.specifier] == ["=="], each
    assert "://" not in (ROOT / "constraints.txt").read_text()


@pytest.mark.parametrize("python", PYTHONS)
def test_constraints_name_one_version_for_each_python(python: str, pyproject: dict[str, Any]) -> None:
    assert f"Programming Language :: Python :: {python}" in pyproject["project"]["classifiers"]
    names = [normal(each.name) for each in constraints() if applies(each, python_version=python)]
    assert sorted(names) == sorted(set(names))


def test_constraints_cover_everything_that_is_installed() -> None:
    pinned = {normal(each.name): each for each in constraints() if applies(each)}
    todo = [("jobmetrics", extra) for extra in ("celery", "rq", "exporter", "dev")]
    seen = set(todo)
    while todo:
        name, extra = todo.pop()
        for requirement in map(Requirement, importlib.metadata.requires(name) or []):
            if not applies(requirement, extra=extra):
                continue
            version = importlib.metadata.version(requirement.name)
            pin = pinned.get(normal(requirement.name))
            assert pin is not None, f"{requirement.name} {version} is installed but not in constraints.txt"
            assert pin.specifier.contains(version), f"{requirement.name} {version} is not {pin}"
            for more in ("", *requirement.extras):
                if (requirement.name, more) not in seen:
                    seen.add((requirement.name, more))
                    todo.append((requirement.name, more))


def test_every_folder_of_tests_is_a_package() -> None:
    folders = {path.parent for path in (ROOT / "tests").rglob("*.py")}
    assert [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []
    for name in ("unit", "multiprocess", "integration", "e2e"):
        assert (ROOT / "tests" / name / "__init__.py").exists()


def test_make_targets_are_explained() -> None:
    answer = subprocess.run(
        ["make", "--no-print-directory", "help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    listed = set(re.findall(r"^ *make ([a-z-]+)  ", answer, re.MULTILINE))
    wanted = {
        "demo",
        "test",
        "test-all",
        "coverage",
        "test-fast",
        "test-long",
        "bench",
        "lint",
        "types",
        "clean",
        "help",
    }
    assert wanted <= listed


@pytest.mark.parametrize("script", [".ci/run", "tools/venv.sh", "tools/servers.sh", "tools/debian.sh"])
def test_scripts_parse(script: str) -> None:
    path = ROOT / script
    shell = "bash" if script == ".ci/run" else "sh"
    subprocess.run([shell, "-n", str(path)], check=True)
    assert os.access(path, os.X_OK) == path.read_text().startswith("#!")


def test_an_unknown_server_is_refused() -> None:
    answer = subprocess.run(
        [ROOT / "tools/servers.sh", "ensure", "memcached"], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 2
    assert "known: redis, rabbitmq, prometheus" in answer.stderr
