"""Generate the reference tables of the documentation, as Markdown, from the code that they describe.

`make reference` writes each table between the comments `<!-- generated: NAME -->` and `<!-- end: NAME -->` of its page,
so that the pages can be read without a build. A test compares them with the code.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from jobmetrics import families, settings
from jobmetrics.cli.group import READERS, jobmetrics
from jobmetrics.cli.options import _FILE_KEYS
from jobmetrics.errors import SettingsError
from jobmetrics.families import Family
from jobmetrics.integration import known_names

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

_REGION = re.compile(r"^<!-- generated: ([a-z-]+) -->\n(.*?)^<!-- end: \1 -->$", re.MULTILINE | re.DOTALL)
_ROW = re.compile(r"^\| `([a-z_]+)`(?=[ ,])", re.MULTILINE)
DIRECTORY = "/dev/shm/jobmetrics-<uid>"  # noqa: S108 - the default on Linux, not a place to write to

_PROCESSES = {
    families.SUM: "sum",
    families.LIVE_SUM: "sum of the living",
    families.MAX: "greatest",
    families.MIN: "least",
    families.MOST_RECENT: "last set",
    families.HIGH_WATER: "greatest ever",
    families.JOURNAL: "of the living",
}
_COMMON = "common"
_DEFAULT_IN_HELP = re.compile(r"\s*\[default: (.*)\]\Z", re.DOTALL)


def fill_in(page: str) -> str:
    """Return a page with its generated parts replaced by current ones.

    Raises:
        KeyError: If no function generates a part.
    """
    return _REGION.sub(
        lambda found: f"<!-- generated: {found[1]} -->\n\n{GENERATED[found[1]]()}\n\n<!-- end: {found[1]} -->", page
    )


def with_anchors(page: str) -> str:
    """Return a page with a link target on each row of the tables of metrics and settings, in MyST's form."""

    def anchored(region: re.Match[str]) -> str:
        prefix = _PREFIXES.get(region[1])
        if prefix is None:
            return region[0]
        return _ROW.sub(lambda row: f"| [`{row[1]}`]{{#{prefix}{anchor(row[1])}}}", region[0])

    return _REGION.sub(anchored, page)


def _table(headings: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def anchor(name: str) -> str:
    """The link target of a name: with hyphens instead of underscores."""
    return name.replace("_", "-")


def _plain(text: str) -> str:
    """A text from the code, with Markdown's characters escaped."""
    return re.sub(r"([*_<\[\]`])", r"\\\1", text)


# ---------------------------------------------------------------- metrics


def metrics() -> str:
    """All metrics, one table a source."""
    return "\n\n".join(_source(source) for source in (families.RECORDED, families.COLLECTED, families.OWN))


def _source(source: str) -> str:
    found = [family for family in families.BUILT_IN if family.source == source]
    recorded = source == families.RECORDED
    headings = ["metric", "type", "labels", "meaning", *(["over processes"] if recorded else [])]
    rows = [
        [
            _code(family.name),
            family.type,
            _labels(family),
            _plain(family.help),
            *([_PROCESSES[family.mode]] if recorded else []),
        ]
        for family in found
    ]
    return f"## From {source}\n\n{_table(headings, rows)}"


def _labels(family: Family) -> str:
    """The labels, with one word for those that all metrics of jobs have."""
    common = family.labels[: len(families.JOB_LABELS)] == families.JOB_LABELS
    rest = map(_code, family.labels[len(families.JOB_LABELS) if common else 0 :])
    return ", ".join([*([_COMMON] if common else []), *rest]) or "none"


def label_values() -> str:
    """The labels with a fixed set of values."""
    values: dict[str, tuple[str, ...]] = {}
    for family in families.BUILT_IN:
        for label, texts in family.closed:
            values[label] = known_names() if texts == families.REGISTERED else texts
    rows = ([_code(label), ", ".join(map(_code, texts))] for label, texts in values.items())
    return _table(["label", "values"], rows)


def buckets() -> str:
    """The default bounds of histograms."""
    bounds = ", ".join(f"{bound:g}" for bound in settings.DEFAULT_BUCKETS)
    names = ", ".join(_code(family.name) for family in _histograms())
    return f"{names} have the upper bounds (seconds) {bounds} and `+Inf`."


def _histograms() -> list[Family]:
    return [family for family in families.BUILT_IN if family.type == families.HISTOGRAM]


# ---------------------------------------------------------------- settings


def configuration() -> str:
    """All settings."""
    rows = [
        [
            f"{_code(name)}, {_code(settings.ENVIRONMENT_PREFIX + name.upper())}",
            _sentence(field.metadata["help"]) + _default(field),
            _plain(_allowed(name)),
        ]
        for name, field in settings.known().items()
    ]
    return _table(["setting, environment variable", "meaning", "takes"], rows)


def _sentence(text: str) -> str:
    return _plain(text[:1].upper() + text[1:].rstrip(".") + ".") if text else ""


def _allowed(name: str) -> str:
    """The accepted values, from the setting's error message."""
    try:
        settings.parse(name, object())
    except SettingsError as error:
        return str(error).partition("; it takes ")[2]
    raise ValueError(f"{name} takes anything")


def _default(field: Any) -> str:
    if field.default_factory is settings.default_dir:
        return _by_default(_without_uid(settings.default_dir()))
    value = field.default_factory() if callable(field.default_factory) else field.default
    if value in (None, "", ()) or value == {}:
        return ""
    return _by_default(str(value).lower() if isinstance(value, bool) else str(value))


def _by_default(value: str) -> str:
    return f" Default: {_code(value)}." if value else ""


def _without_uid(text: str) -> str:
    """Replace the default directory of the user and platform that build this."""
    return text.replace(settings.default_dir(), DIRECTORY)


# ---------------------------------------------------------------- commands


def commands() -> str:
    """The command line: first the options that all reading commands share, then the other options of each command."""
    shared = [option for option in _options("dump") if all(_has(name, option) for name in READERS)]
    parts = [f"## Options of {', '.join(READERS)}\n\n{_option_table(shared)}"]
    for name, command in jobmetrics.commands.items():
        own = [option for option in _options(name) if name not in READERS or not _is_in(option, shared)]
        table = _option_table(own) if own else "No other options."
        parts.append(f"## jobmetrics {name}\n\n{_plain(inspect.cleandoc(command.help or ''))}\n\n{table}")
    return "\n\n".join(parts)


def _options(command: str) -> list[click.Option]:
    params = jobmetrics.commands[command].params
    return [option for option in params if isinstance(option, click.Option)]


def _is_in(option: click.Option, options: Iterable[click.Option]) -> bool:
    return any(each.opts == option.opts for each in options)


def _has(command: str, option: click.Option) -> bool:
    return _is_in(option, _options(command))


def _option_table(options: Iterable[click.Option]) -> str:
    return _table(["option", "meaning", "environment variable, key in `[exporter]`"], map(_option_row, options))


def _option_row(option: click.Option) -> list[str]:
    metavar = "" if option.is_flag else f" {option.metavar or '|'.join(option.type.choices)}"  # type: ignore[attr-defined]  # an option without a metavar is a choice
    text, default = _without_uid(option.help or ""), ""
    if found := _DEFAULT_IN_HELP.search(text):
        text, default = text[: found.start()], found[1]
    elif option.show_default:
        default = str(option.default)
    elsewhere = [_code(_variable(option)), _code(_key(option))]
    return [
        _code(" ".join(option.opts) + metavar),
        _sentence(text) + _by_default(default),
        ", ".join(filter(None, elsewhere)),
    ]


def _variable(option: click.Option) -> str:
    if option.envvar:
        return str(option.envvar)
    return settings.ENVIRONMENT_PREFIX + str(option.name).upper() if option.name in settings.known() else ""


def _key(option: click.Option) -> str:
    """The option's key in the table [exporter] of the configuration file; settings are keys outside this table."""
    return next((key for key, parameter in _FILE_KEYS.items() if parameter == option.name), "")


# ---------------------------------------------------------------- benchmarks


def ratios() -> str:
    """The budgets, with the values that were measured last."""
    measured = json.loads((ROOT / "docs" / "benchmarks.json").read_text())
    rows = ([row["what"], row["measured"], row["budget"], row["kept"]] for row in measured["rows"])
    heading = f"Measured on {measured['date']} ({measured['machine']}) by `{measured['command']}`:"
    return f"{heading}\n\n{_table(['what', 'measured', 'budget', 'kept'], rows)}"


GENERATED: Mapping[str, Callable[[], str]] = {
    "metrics": metrics,
    "label-values": label_values,
    "buckets": buckets,
    "configuration": configuration,
    "commands": commands,
    "ratios": ratios,
}
# Prefixes of the rows' link targets.
_PREFIXES = {"metrics": "", "configuration": "setting-"}


def parts(page: str) -> Iterator[str]:
    """The names of a page's generated parts."""
    return (found[1] for found in _REGION.finditer(page))


if __name__ == "__main__":
    for path in PAGES:
        text = path.read_text()
        if (filled := fill_in(text)) != text:
            path.write_text(filled)
            print(f"{path.relative_to(ROOT)} written")
