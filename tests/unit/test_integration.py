"""Job systems as integrations; and no module outside their folders names one."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import pytest

import jobmetrics
from jobmetrics import recorder
from jobmetrics.cli.group import jobmetrics as jobmetrics_group
from jobmetrics.collector_api import CollectorOptions
from jobmetrics.families import OVERFLOW
from jobmetrics.integration import (
    COMMAND_OPTIONS,
    ENTRY_POINT_GROUP,
    Option,
    System,
    clear_worker_gauges,
    find_systems,
    known_names,
    worker_gauges,
)
from jobmetrics.settings import Settings
from tests.support.readings import values
from tests.unit.doubles import die

PACKAGE = Path(jobmetrics.__file__).parent
FOLDERS = ("celery", "rq")
NAMES = re.compile(r"(?<![a-z])(celery|rq)(?![a-z])", re.IGNORECASE)

SPOOL = System("spool", options=[Option("spool_folder", "DIR", "", repeatable=True), Option("spool_key", "KEY", "")])
AGAIN = System("spool")


def test_no_module_outside_the_folders_names_a_job_system() -> None:
    found = []
    for path in sorted(PACKAGE.rglob("*.py")):
        name = path.relative_to(PACKAGE)
        if name.parts[0] in FOLDERS:
            continue
        lines = enumerate(path.read_text().splitlines(), 1)
        found += [f"{name}:{number}: {line.strip()}" for number, line in lines if NAMES.search(line)]
    assert found == []


@pytest.mark.parametrize(
    "package",
    ["jobmetrics.integration", "jobmetrics.celery.system", "jobmetrics.rq.system", "jobmetrics.celery, jobmetrics.rq"],
)
def test_importing_it_loads_no_framework_and_no_module_of_the_commands(package: str) -> None:
    code = f"import sys; before = set(sys.modules); import {package}; print(sorted(set(sys.modules) - before))"
    loaded = set(eval(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout))
    unwanted = {"click", "importlib.metadata", "celery", "kombu", "rq", "redis", "numpy", "jobmetrics.collector_api"}
    assert loaded & unwanted == set()


def test_the_rq_package_has_its_public_names_only() -> None:
    import jobmetrics.rq

    assert not hasattr(jobmetrics.rq, "no_such_name")
    assert jobmetrics.rq.Worker.__module__ == "jobmetrics.rq"


# ------------------------------------------------------------------ systems


def test_an_option_has_one_name_everywhere() -> None:
    repeatable, single = SPOOL.options
    assert (repeatable.flag, repeatable.keyword) == ("--spool-folder", "spool_folders")
    assert (single.flag, single.keyword) == ("--spool-key", "spool_key")


@pytest.mark.parametrize("name", ["", "Spool", "a-b", OVERFLOW])
def test_a_bad_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not allowed; it takes a-z"):
        System(name)


def test_an_option_that_does_not_begin_with_the_name_is_refused() -> None:
    with pytest.raises(ValueError, match="'folder' of spool is not allowed; it begins with spool_"):
        System("spool", options=[Option("folder", "DIR", "")])


def test_a_system_is_requested_by_its_options() -> None:
    assert not SPOOL.is_asked_for(CollectorOptions())
    assert not SPOOL.is_asked_for(CollectorOptions(spool_folders=(), spool_key=None, rq_queues=("q",)))
    assert SPOOL.is_asked_for(CollectorOptions(spool_folders=("a",)))
    assert SPOOL.is_asked_for(CollectorOptions(spool_key="a"))
    assert AGAIN.is_asked_for(CollectorOptions())


def installed(monkeypatch: pytest.MonkeyPatch, **entries: str) -> None:
    def entry_points(group: str) -> Any:
        return [EntryPoint(name, value, group) for name, value in entries.items() if group == ENTRY_POINT_GROUP]

    monkeypatch.setattr("importlib.metadata.entry_points", entry_points)


def test_systems_are_sorted_by_name_without_duplicates(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, spool=f"{__name__}:SPOOL", twin=f"{__name__}:AGAIN", rq="jobmetrics.rq.system:RQ")
    systems, broken = find_systems()
    assert [system.name for system in systems] == ["rq", "spool"]
    assert broken == ("job system twin cannot be used: another package has the name spool",)
    assert known_names() == ("rq", "spool", "python")


def test_systems_are_loaded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, spool=f"{__name__}:SPOOL")
    found = find_systems()
    installed(monkeypatch)
    assert find_systems() is found


def test_a_system_that_cannot_be_loaded_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    installed(monkeypatch, a="no_such_module:X", b="os:no_such", c="os:path")
    assert find_systems() == (
        (),
        (
            "job system a cannot be loaded: No module named 'no_such_module'",
            "job system b cannot be loaded: AttributeError",
            "job system c cannot be used: os:path is not a System",
        ),
    )


CLASH = System("max", options=[Option("max_queues", "COUNT", "")])
OUTER = System("a", options=[Option("a_b_c", "X", "")])
INNER = System("a_b", options=[Option("a_b_c", "Y", "")])
PLURAL = System("a", options=[Option("a_file", "X", "", repeatable=True), Option("a_files", "Y", "")])


def test_a_package_that_exits_while_it_is_loaded_does_not_end_the_command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "exits_when_imported.py").write_text("raise SystemExit('secret')\n")
    monkeypatch.syspath_prepend(tmp_path)
    installed(monkeypatch, a="exits_when_imported:X", spool=f"{__name__}:SPOOL")
    systems, broken = find_systems()
    assert (systems, broken) == ((SPOOL,), ("job system a cannot be loaded: SystemExit",))


@pytest.mark.parametrize(
    ("entries", "refused"),
    [
        ({"max": "CLASH"}, "job system max cannot be used: the option --max-queues exists already"),
        ({"a": "OUTER", "b": "INNER"}, "job system b cannot be used: the option --a-b-c exists already"),
        ({"a": "PLURAL"}, "job system a cannot be used: the option --a-files exists already"),
    ],
)
def test_a_system_with_an_option_that_exists_already_is_left_out(
    entries: dict[str, str], refused: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed(monkeypatch, **{name: f"{__name__}:{value}" for name, value in entries.items()})
    systems, broken = find_systems()
    assert broken == (refused,)
    assert len(systems) == len(entries) - 1


def test_the_options_of_the_commands_are_known() -> None:
    systems = {option.keyword for system in find_systems().systems for option in system.options}
    names = {option.name for command in jobmetrics_group.commands.values() for option in command.params}
    assert {name for name in names if name and "_" in name} - systems == COMMAND_OPTIONS


@pytest.mark.parametrize("name", ["spool_a b", "spool_", "spool_A", "spool_é", "spool_a-b"])
def test_an_option_that_no_command_line_takes_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="is not allowed; it takes a-z, 0-9 and _"):
        System("spool", options=[Option(name, "DIR", "")])


# ------------------------------------------------------------------ worker gauges


@pytest.fixture
def gauges(active_settings: Settings) -> Iterator[None]:
    yield
    die(recorder.default().writer)


@pytest.mark.usefixtures("gauges")
def test_gauges_show_the_worker_until_it_is_gone(registry_dir: Path) -> None:
    worker_gauges("spool")
    assert values(registry_dir, "jobs_workers") == values(registry_dir, "jobs_worker_capacity") == {("spool",): 1}
    worker_gauges("spool", 4, {"a": 2, "b": 1})
    worker_gauges("spool", None, {"b": 3})
    assert values(registry_dir, "jobs_worker_capacity") == {("spool",): 4}
    assert values(registry_dir, "jobs_reserved") == {("spool", "b"): 3}
    worker_gauges("other")
    clear_worker_gauges("spool")
    assert values(registry_dir, "jobs_workers") == values(registry_dir, "jobs_worker_capacity") == {("other",): 1}
    assert values(registry_dir, "jobs_reserved") == {}


@pytest.mark.usefixtures("gauges")
def test_a_worker_that_never_showed_gauges_shows_none_at_its_end(registry_dir: Path) -> None:
    clear_worker_gauges("spool")
    assert list(registry_dir.iterdir()) == []
