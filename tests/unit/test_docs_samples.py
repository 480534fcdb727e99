"""Every code sample of the documentation is run or checked."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import promql_parser
import pytest
import yaml
from packaging.requirements import Requirement

from jobmetrics import settings
from jobmetrics.cli.group import jobmetrics
from jobmetrics.cli.options import _FILE_KEYS
from jobmetrics.exporter.web import config
from jobmetrics.integration import ENTRY_POINT_GROUP
from tests.unit.documents import DOCS, OTHERS, PAGES, ROOT, Block, blocks, code_words, name_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

BLOCKS = blocks(*PAGES, *OTHERS)
KINDS = {"python", "sh", "toml", "yaml", "promql", "text"}
# Checked by test_docs_inside, and by tests/e2e/test_integrations.py, which installs them.
RUN_ELSEWHERE = {DOCS / "inside-the-job.md", DOCS / "integrations.md"}
ALONE = ("install", "kubectl", "py-spy", "systemctl", "systemd-sysusers", "systemd-tmpfiles", "xargs")
PROMETHEUS_KEYS = {"global", "rule_files", "scrape_configs", "remote_write", "alerting"}
ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=")


def of_kind(kind: str) -> list[Block]:
    return [block for block in BLOCKS if block.language == kind]


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.page.name != "CONTRIBUTING.md"], ids=str)
def test_every_block_has_a_language(block: Block) -> None:
    assert block.fenced, "an indented block has no language"
    assert block.language in KINDS


# ---------------------------------------------------------------- Python


PYTHON_PAGES = sorted({block.page for block in of_kind("python")} - RUN_ELSEWHERE)
RUN_ALL = "import runpy, sys; [runpy.run_path(path) for path in sys.argv[1:]]"


@pytest.mark.parametrize("page", PYTHON_PAGES, ids=name_of)
def test_python_runs(page: Path, tmp_path: Path) -> None:
    samples = []
    for number, block in enumerate(block for block in of_kind("python") if block.page == page):
        samples.append(tmp_path / f"sample_{number}.py")
        samples[-1].write_text(block.text)
    environment = os.environ | {"JOBMETRICS_DIR": str(tmp_path / "registry"), "JOBMETRICS_PROPAGATE_ERRORS": "true"}
    done = subprocess.run(
        [sys.executable, "-c", RUN_ALL, *map(str, samples)],
        cwd=tmp_path, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


# ---------------------------------------------------------------- commands


def commands(block: Block) -> list[list[str]]:
    """The commands of a block, as words."""
    lines = block.text.replace("\\\n", " ").splitlines()
    return [words for line in lines if (words := shlex.split(line, comments=True))]


def without_prefix(words: list[str]) -> list[str]:
    """A command without sudo, variables and redirections; variables of jobmetrics have to exist."""
    rest = words[1:] if words[0] == "sudo" else words
    rest = rest[: rest.index(">")] if ">" in rest else rest
    while rest and (found := ASSIGNMENT.match(rest[0])):
        if found[1].startswith(settings.ENVIRONMENT_PREFIX):
            assert found[1] in known_variables()
        rest = rest[1:]
    return rest


def options_exist(command: click.Command, words: list[str], context: click.Context | None = None) -> None:
    """Raise click.UsageError for an unknown option or subcommand; values are not checked."""
    context = click.Context(command, parent=context, info_name=command.name, **command.context_settings)
    _, rest, _ = command.make_parser(context).parse_args(words)
    if isinstance(command, click.Group) and rest:
        below = command.get_command(context, rest[0])
        assert below is not None, f"{command.name} has no command {rest[0]}"
        options_exist(below, rest[1:], context)


def celery_command() -> click.Command:
    from celery.bin.celery import celery

    return celery  # type: ignore[no-any-return]  # ships no types


def rq_command() -> click.Command:
    from rq.cli.cli import main

    return main


def check_jobmetrics(words: list[str]) -> None:
    options_exist(jobmetrics, words)
    if words:
        above = click.Context(jobmetrics, info_name=jobmetrics.name, **jobmetrics.context_settings)
        jobmetrics.commands[words[0]].make_context(words[0], words[1:], parent=above)  # checks values too


def check_pip(words: list[str]) -> None:
    assert words[0] == "install"
    for word in words[1:]:
        if not word.startswith("-"):
            requirement = Requirement(re.sub(r"^\.", "jobmetrics", word))  # a checkout
            assert requirement.name == "jobmetrics"
            assert requirement.extras <= set(importlib.metadata.metadata("jobmetrics").get_all("Provides-Extra") or ())


def check_make(words: list[str]) -> None:
    targets = [word for word in words if not ASSIGNMENT.match(word)]
    makefile = (ROOT / "Makefile").read_text()
    for target in targets:
        assert re.search(rf"^{re.escape(target)}:", makefile, re.MULTILINE), f"make {target}"


def check_python(words: list[str]) -> None:
    if words[0] == "-c":
        imports, _, _ = words[1].rpartition("; ")
        names: dict[str, Any] = {}
        exec(imports, names)
        called = re.search(r"\bc\.(\w+)\(", words[1])
        assert called is None or hasattr(names["c"], called[1]), words[1]
        return
    assert words[0] == "-m"
    if words[1] == "jobmetrics":
        check_jobmetrics(words[2:])
    else:
        assert importlib.util.find_spec(words[1]) is not None, words[1]


def check_promtool(words: list[str]) -> None:
    files = [word for word in words if "/" in word]
    assert all((ROOT / file).is_file() for file in files), files
    if shutil.which("promtool"):
        subprocess.run(["promtool", *words], cwd=ROOT, check=True, capture_output=True)


def check_docker(words: list[str]) -> None:
    assert words[0] == "compose"
    assert (ROOT / "docker-compose.yml").is_file()


CHECKS: dict[str, Callable[[list[str]], None]] = {
    "jobmetrics": check_jobmetrics,
    "celery": lambda words: options_exist(celery_command(), words),
    "rq": lambda words: options_exist(rq_command(), words),
    "pip": check_pip,
    "make": check_make,
    "python": check_python,
    "python3": check_python,
    "promtool": check_promtool,
    "docker": check_docker,
}


def known_variables() -> set[str]:
    options = [option for command in jobmetrics.commands.values() for option in command.params]
    return (
        {settings.CONFIG_VARIABLE}
        | {settings.ENVIRONMENT_PREFIX + name.upper() for name in settings.known()}
        | {str(option.envvar) for option in options if option.envvar}
    )


@pytest.mark.parametrize("block", of_kind("sh"), ids=str)
def test_commands_and_options_exist(block: Block) -> None:
    for words in filter(None, map(without_prefix, commands(block))):
        if words[0] in CHECKS:
            CHECKS[words[0]](words[1:])
        else:
            assert words[0] in ALONE, f"{block}: {words[0]} is not checked"
            named = [word for word in words if re.match(r"(deploy|rules|dashboards|examples)/", word)]
            assert all((ROOT / word).exists() for word in named), named


RUNBOOK_COMMANDS = [
    code for code in code_words(DOCS / "runbook.md") if re.match(r"(jobmetrics|celery|rq|python) [a-z-]", code)
]


@pytest.mark.parametrize("line", dict.fromkeys(RUNBOOK_COMMANDS))
def test_commands_within_the_sentences_of_the_runbook_exist(line: str) -> None:
    program, *words = shlex.split(line)
    CHECKS[program](words)


@pytest.mark.parametrize("line", ["jobmetrics exporter --no-such", "jobmetrics nothing", "rq worker --no-such",
                                  "celery -A shop nothing", "pip install 'jobmetrics[nothing]'", "make nothing",
                                  "python -m no_such_module", "python -c 'import rq.command as c; c.nothing()'",
                                  "jobmetrics top --interval soon"])  # fmt: skip
def test_a_wrong_command_is_found(line: str) -> None:
    program, *words = shlex.split(line)
    with pytest.raises((click.UsageError, AssertionError)):
        CHECKS[program](words)


# ---------------------------------------------------------------- data


@pytest.mark.parametrize("block", of_kind("toml"), ids=str)
def test_toml_is_accepted(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("grp.getgrnam", lambda name: SimpleNamespace(gr_gid=0))  # the reader has a group of that name
    table = tomllib.loads(block.text)
    if "project" in table:
        assert set(table["project"]["entry-points"]) == {ENTRY_POINT_GROUP}
        return
    file = tmp_path / "jobmetrics.toml"
    file.write_text(block.text)
    settings.load({settings.CONFIG_VARIABLE: str(file)})
    assert set(settings.exporter_table(str(file))) <= set(_FILE_KEYS)


@pytest.mark.parametrize("block", of_kind("yaml"), ids=str)
def test_yaml_is_accepted(block: Block, tmp_path: Path) -> None:
    content: Any = yaml.safe_load(block.text)
    assert isinstance(content, dict)
    file = tmp_path / "sample.yml"
    file.write_text(block.text)
    if content.keys() & {"tls_server_config", "basic_auth_users"}:
        assert config.load(str(file)).users
    elif content.keys() <= PROMETHEUS_KEYS:
        if shutil.which("promtool"):
            done = subprocess.run(
                ["promtool", "check", "config", "--syntax-only", str(file)], capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, done.stderr
    else:
        assert content.keys() & {"kind", "services", "apiVersion"}, f"{block}: unknown kind of YAML"


@pytest.mark.parametrize("block", of_kind("promql"), ids=str)
def test_queries_parse(block: Block) -> None:
    promql_parser.parse(block.text)
