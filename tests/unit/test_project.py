"""Facts about the project that are in two places, and promises of its files."""

from __future__ import annotations

import ast
import importlib.metadata
import os
import re
import shutil
import signal
import subprocess
import sys
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

import nox.project
import pytest
from packaging.requirements import Requirement

from jobmetrics import __file__ as package_file
from jobmetrics import __version__
from jobmetrics.integration import System, find_systems

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[2]
PYTHONS = ("3.10", "3.11", "3.12", "3.13", "3.14")


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


def test_the_version_has_one_source(pyproject: dict[str, Any]) -> None:
    assert importlib.metadata.version("jobmetrics") == __version__
    assert "version" not in pyproject["project"]
    assert ROOT / pyproject["tool"]["hatch"]["version"]["path"] == Path(package_file)


def test_development_is_not_a_published_extra() -> None:
    extras = importlib.metadata.metadata("jobmetrics").get_all("Provides-Extra") or []
    assert sorted(extras) == ["all", "celery", "exporter", "rq"], "if .venv is older than this: make setup"


def test_the_package_names_its_authors_and_addresses() -> None:
    metadata = importlib.metadata.metadata("jobmetrics")
    assert metadata["Author"] == "The jobmetrics developers"
    addresses = dict(address.split(", ") for address in metadata.get_all("Project-URL") or [])
    assert set(addresses) == {"Homepage", "Documentation", "Source", "Issues", "Changelog"}
    assert all(address.startswith(addresses["Source"]) for address in addresses.values())


def test_types_and_licence_are_shipped(pyproject: dict[str, Any]) -> None:
    assert (ROOT / "jobmetrics/py.typed").exists()
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


def test_constraints_are_exact_and_name_no_index() -> None:
    for each in constraints():
        assert each.url is None, each
        assert [part.operator for part in each.specifier] == ["=="], each
    assert "://" not in (ROOT / "constraints.txt").read_text()


@pytest.mark.parametrize("python", PYTHONS)
def test_constraints_name_one_version_for_each_python(python: str, pyproject: dict[str, Any]) -> None:
    assert f"Programming Language :: Python :: {python}" in pyproject["project"]["classifiers"]
    names = [normal(each.name) for each in constraints() if applies(each, python_version=python)]
    assert sorted(names) == sorted(set(names))


def test_constraints_cover_everything_that_is_installed(pyproject: dict[str, Any]) -> None:
    pinned = {normal(each.name): each for each in constraints() if applies(each)}
    development = list(map(Requirement, nox.project.dependency_groups(pyproject, "dev")))
    seen = {("jobmetrics", extra) for extra in ("celery", "rq", "exporter")}
    todo: list[tuple[str, str]] = [("", ""), *seen]
    while todo:
        name, extra = todo.pop()
        requirements = map(Requirement, importlib.metadata.requires(name) or []) if name else development
        for requirement in requirements:
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


def test_the_wheel_holds_the_package_and_nothing_else(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(tmp_path)]
    subprocess.run(build, cwd=ROOT, capture_output=True, check=True)
    (wheel,) = tmp_path.iterdir()
    with zipfile.ZipFile(wheel) as file:
        names = {name for name in file.namelist() if not name.partition("/")[0].endswith(".dist-info")}
    package = Path(package_file).parent
    files = {path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts}
    shipped = {name for name in names if name.startswith("jobmetrics/shipped/")}
    assert names - shipped == {f"jobmetrics/{path.relative_to(package).as_posix()}" for path in files}
    assert {name.split("/")[2] for name in shipped} == {"rules", "dashboards"}, "files that two commands print"


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
def test_scripts_have_valid_syntax(script: str) -> None:
    path = ROOT / script
    shell = "bash" if script == ".ci/run" else "sh"
    subprocess.run([shell, "-n", str(path)], check=True)
    assert os.access(path, os.X_OK) == path.read_text().startswith("#!")


@pytest.fixture
def ci(tmp_path: Path) -> Path:
    """CI's script in a checkout with a Makefile of its own, whose targets the test gives."""
    for name in (".ci/run", "tools/slowest.py"):
        (tmp_path / name).parent.mkdir()
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").symlink_to(sys.executable)
    return tmp_path


def targets(ci: Path, **recipes: str) -> None:
    lines = [f"{name.replace('_', '-')}:\n\t@{recipe}\n" for name, recipe in recipes.items()]
    (ci / "Makefile").write_text("".join(lines))


@pytest.mark.parametrize(("recipe", "status"), [("true", 0), ("false", 1)])
def test_make_test_decides_about_ci(recipe: str, status: int, ci: Path) -> None:
    targets(ci, test=recipe, test_all="false", coverage="echo TOTAL 97.0")
    done = subprocess.run([ci / ".ci/run"], capture_output=True, text=True, check=False)
    assert done.returncode == status, done.stderr
    *_, covered, _, decides, measured, reported = done.stdout.splitlines()
    assert covered == "TOTAL 97.0"
    assert decides.startswith(f"make test (decides): {'FAILED' if status else 'passed'}, 0 min ")
    assert reported.startswith("make test-all (reported): FAILED, 0 min ")
    assert measured.startswith("coverage of the unit tests (reported): passed, 0 min ")


def test_ci_prints_the_result_of_make_test_when_it_is_ended_before_the_rest(ci: Path) -> None:
    os.mkfifo(ci / "started")
    targets(ci, test="true", coverage="true", test_all="echo >started; exec sleep 1000")
    with subprocess.Popen([ci / ".ci/run"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as running:
        (ci / "started").read_text()
        running.terminate()
        printed, _ = running.communicate()
    assert running.returncode == 128 + signal.SIGTERM
    decides, _, ended = printed.splitlines()[-3:]
    assert decides.startswith("make test (decides): passed, ")
    assert ended == "ended from outside"


@pytest.fixture
def bare_path(tmp_path: Path) -> Path:
    """A PATH without servers, on which sudo and apt-get log their arguments, and id returns a given user."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "dirname", "env", "mktemp", "rm", "cat", "touch", "chmod"):
        found = shutil.which(name)
        assert found
        (folder / name).symlink_to(found)
    for name in ("sudo", "apt-get"):
        executable(folder / name, f'echo "{name} $*" >>"{tmp_path}/calls"')
    return folder


def executable(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def ensure(path: Path, *servers: str) -> subprocess.CompletedProcess[str]:
    command = ["/bin/sh", str(ROOT / "tools/servers.sh"), "ensure", *servers]
    return subprocess.run(command, env={"PATH": str(path)}, capture_output=True, text=True, check=False)


@pytest.mark.parametrize("with_sudo", [True, False], ids=["sudo", "no-sudo"])
def test_without_root_the_set_up_prints_one_line_and_changes_nothing(
    with_sudo: bool, bare_path: Path, tmp_path: Path
) -> None:
    executable(bare_path / "id", "echo 1000")
    if not with_sudo:
        (bare_path / "sudo").unlink()
    done = ensure(bare_path, "redis", "prometheus")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "not installed: redis-server prometheus. "
        "On Debian or Ubuntu: sudo apt-get install --no-install-recommends redis-server prometheus\n"
    )
    assert not (tmp_path / "calls").exists()


def test_as_root_on_debian_the_set_up_installs_and_starts_no_service(bare_path: Path, tmp_path: Path) -> None:
    executable(bare_path / "id", "echo 0")
    executable(
        bare_path / "apt-get",
        f'echo "apt-get $*" >>"{tmp_path}/calls"\n'
        f'case "$*" in *redis-server) touch "{bare_path}/redis-server"; chmod 755 "{bare_path}/redis-server" ;; esac',
    )
    done = ensure(bare_path, "redis")
    assert done.returncode == 0, done.stderr
    update, install = (tmp_path / "calls").read_text().splitlines()
    assert update.endswith(" update")
    assert install.endswith(" install --yes --no-install-recommends redis-server")
    # The scripts of packages start services by these names, and find the stubs first.
    for call in (update, install):
        assert f"DPkg::Path={ROOT}/tools/no-services:/usr" in call
    for name in ("invoke-rc.d", "deb-systemd-invoke"):
        assert subprocess.run([ROOT / "tools/no-services" / name, "x", "start"], check=True).returncode == 0


def test_an_unknown_server_is_refused() -> None:
    answer = subprocess.run(
        [ROOT / "tools/servers.sh", "ensure", "memcached"], capture_output=True, text=True, check=False
    )
    assert answer.returncode == 2
    assert "known: redis, rabbitmq, prometheus" in answer.stderr


def test_no_two_classes_of_the_package_have_one_name() -> None:
    classes = [
        node.name
        for path in (ROOT / "jobmetrics").rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    ]
    assert [name for name, times in Counter(classes).items() if times > 1] == []
