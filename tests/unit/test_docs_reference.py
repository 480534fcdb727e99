"""The generated parts of the documentation are in its pages, and agree with families, settings and commands."""

from __future__ import annotations

import os
from pathlib import Path

import click
import pytest

from benchmarks.measuring import NO_BUDGET, Row
from benchmarks.table import write
from jobmetrics import events, families, settings
from jobmetrics.cli.group import jobmetrics
from jobmetrics.cli.options import _FILE_KEYS
from jobmetrics.families import BUILT_IN, Family
from tests.unit.documents import DOCS, anchors
from tools import docs_reference

METRICS = docs_reference.metrics()
SETTINGS = docs_reference.configuration()
COMMANDS = docs_reference.commands()

OPTIONS = [
    (name, option)
    for name, command in jobmetrics.commands.items()
    for option in command.params
    if isinstance(option, click.Option)
]


def cells(table: str, first: str) -> list[str]:
    """The cells of the row that begins with this code word, without Markdown escapes."""
    (row,) = {line for line in table.splitlines() if line.startswith((f"| `{first}`", f"| `{first} "))}
    return [cell.strip().replace("\\", "") for cell in row.strip("|").replace("\\|", "/").split(" | ")]


@pytest.mark.parametrize("family", BUILT_IN, ids=lambda family: family.name)
def test_each_metric_has_its_row(family: Family) -> None:
    _, kind, labels, meaning, *processes = cells(METRICS, family.name)
    assert kind == family.type
    every = labels.replace("common", "`system`, `job_type`, `queue_name`")
    assert every == (", ".join(f"`{label}`" for label in family.labels) or "none")
    assert meaning == family.help
    assert bool(processes) == (family.source == families.RECORDED)


def test_metrics_can_be_linked_to() -> None:
    assert {docs_reference.anchor(family.name) for family in BUILT_IN} <= anchors(DOCS / "metrics.md")


def test_a_renamed_metric_changes_the_page(monkeypatch: pytest.MonkeyPatch) -> None:
    renamed = Family("jobs_renamed_total", families.COUNTER, "Renamed.", ("system",))
    monkeypatch.setattr(families, "BUILT_IN", (renamed,))
    assert cells(docs_reference.metrics(), "jobs_renamed_total")[1] == "counter"
    assert "jobs_total" not in docs_reference.metrics()


def test_fixed_values_of_labels() -> None:
    table = docs_reference.label_values()
    assert cells(table, "status")[1] == ", ".join(f"`{status}`" for status in events.STATUSES)
    assert cells(table, "system")[1] == "`celery`, `rq`, `python`"
    assert cells(table, "reason")[1] == ", ".join(f"`{reason}`" for reason in events.WITHDRAWN_REASONS)


def test_buckets_are_the_defaults() -> None:
    text = docs_reference.buckets()
    assert all(f" {bound:g}" in text for bound in settings.DEFAULT_BUCKETS)
    assert all(f"`{family.name}`" in text for family in BUILT_IN if family.type == families.HISTOGRAM)


@pytest.mark.parametrize("name", settings.known())
def test_each_setting_has_its_row(name: str) -> None:
    first, meaning, takes = cells(SETTINGS, name)
    assert f"`JOBMETRICS_{name.upper()}`" in first
    assert meaning.lower().startswith(settings.known()[name].metadata["help"].lower())
    assert takes
    default = settings.known()[name].default
    if isinstance(default, (int, str)) and default != "":
        assert f" Default: `{str(default).lower() if isinstance(default, bool) else default}`." in meaning


def test_the_pages_do_not_show_the_builders_user() -> None:
    assert "/jobmetrics-<uid>`" in SETTINGS
    for text in (SETTINGS, COMMANDS):
        assert f"jobmetrics-{os.getuid()}" not in text


@pytest.mark.parametrize(("command", "option"), OPTIONS, ids=lambda each: getattr(each, "name", each))
def test_each_option_has_its_row(command: str, option: click.Option) -> None:
    shared, *sections = COMMANDS.split("## jobmetrics ")
    (own,) = [section for section in sections if section.startswith(f"{command}\n")]
    row = " | ".join(cells(own if f"| `{option.opts[0]}" in own else shared, option.opts[0]))
    if option.envvar:
        assert f"`{option.envvar}`" in row
    if option.name in settings.known():
        assert f"`JOBMETRICS_{option.name.upper()}`" in row
    assert (option.help or "").split(" [default")[0].split("  [default")[0].strip().rstrip(".") in row


def test_each_key_of_the_file_is_documented() -> None:
    for key in _FILE_KEYS:
        assert f", `{key}` |" in COMMANDS


@pytest.mark.parametrize("page", docs_reference.PAGES, ids=lambda page: page.name)
def test_the_pages_match_the_code(page: Path) -> None:
    text = page.read_text()
    assert text == docs_reference.fill_in(text), f"{page.name} differs from what make reference writes"


def test_the_benchmarks_file_matches_the_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [
        Row("add", 1.0, 8.0, "ns", 0.25),
        Row("import", 16.0, 1.0, "ms", float("nan"), absolute=15.0),
        Row("wall clock", 1.0, 2.0, "us", NO_BUDGET),
    ]
    (tmp_path / "docs").mkdir()
    write(rows, tmp_path / "docs" / "benchmarks.json")
    monkeypatch.setattr(docs_reference, "ROOT", tmp_path)
    table = docs_reference.ratios()
    assert table.startswith("Measured on 20")
    assert " by `make bench`:" in table
    assert table.splitlines()[4:] == ["| add | 0.125 | 0.25 | yes |", "| import | 16 ms | 15 ms | open |"]


def test_each_generated_part_has_a_page() -> None:
    found = [name for page in docs_reference.PAGES for name in docs_reference.parts(page.read_text())]
    assert sorted(found) == sorted(docs_reference.GENERATED)


def test_an_unknown_generated_part_is_refused() -> None:
    with pytest.raises(KeyError):
        docs_reference.fill_in("<!-- generated: nothing -->\n<!-- end: nothing -->")
