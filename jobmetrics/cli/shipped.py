"""`jobmetrics rules` and `jobmetrics dashboards`: print the shipped rules and dashboards, also for a namespace."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path

import click

from jobmetrics.cli.options import settings_from
from jobmetrics.errors import JobmetricsError
from jobmetrics.families import BUILT_IN, HISTOGRAM

RULES = ("jobmetrics.recording.yml", "jobmetrics.alerts.yml")
DASHBOARDS = "jobmetrics-*.json"

_PACKAGE = Path(__file__).resolve().parents[1]
# A wheel holds the files in the package; a checkout holds them beside it.
_PLACES = (_PACKAGE / "shipped", _PACKAGE.parent)

namespace_option = click.option(
    "--namespace",
    metavar="PREFIX",
    help="Prefix of every metric, as for the exporter: acme gives acme_jobs_total.",
)


@click.command()
@namespace_option
def rules(namespace: str | None) -> int:
    """Print the recording rules and alerts for Prometheus, as one YAML file."""
    folder = _folder("rules", RULES[0])
    parts = [(folder / name).read_text(encoding="utf-8") for name in RULES]
    # Each file is a comment and one list of groups. The lists are concatenated.
    text = "groups:\n" + "\n".join(part.partition("\ngroups:\n")[2] for part in parts)
    print(with_namespace(text, settings_from(namespace=namespace).namespace), end="")
    return 0


@click.command()
@namespace_option
@click.option(
    "--output", metavar="DIR", type=click.Path(file_okay=False, path_type=Path),
    help="Write each dashboard to a separate file in DIR, for Grafana's provisioning.",
)  # fmt: skip
def dashboards(namespace: str | None, output: Path | None) -> int:
    """Print the Grafana dashboards as one JSON list, or write each to a file."""
    found = sorted(_folder("dashboards/grafana", "jobmetrics-overview.json").glob(DASHBOARDS))
    prefix = settings_from(namespace=namespace).namespace
    texts = {path.name: with_namespace(path.read_text(encoding="utf-8"), prefix) for path in found}
    if output is None:
        print(json.dumps([json.loads(text) for text in texts.values()], indent=2))
        return 0
    output.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (output / name).write_text(text, encoding="utf-8")
        print(output / name)
    return 0


def with_namespace(text: str, namespace: str) -> str:
    """Add a prefix to the names of all metrics in rules or a dashboard.

    Recorded series get the prefix too, so that one Prometheus can load the rules of two namespaces.
    """
    return _names().sub(rf"{namespace}_\g<0>", text) if namespace else text


@cache
def _names() -> re.Pattern[str]:
    """Match a metric's name, and the metric in a recorded series' level:metric:operations."""
    series = "|".join(
        family.name + ("(?:_bucket|_sum|_count)?" if family.type == HISTOGRAM else "") for family in BUILT_IN
    )
    return re.compile(rf"(?<=[a-z]:)jobs_\w+(?=:)|(?<![\w:])(?:{series})(?![\w:])")


def _folder(name: str, file: str) -> Path:
    for place in _PLACES:
        if (place / name / file).is_file():
            return place / name
    raise JobmetricsError(f"{name}/{file} is missing from this installation")
