"""The shipped dashboards: their JSON, and their queries."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import dashboard as model
from grafana_foundation_sdk.models.prometheus import Dataquery

from dashboards import exporter, job_type, overview, queues, workers
from dashboards.assembly import Spec
from dashboards.promql import RATE_INTERVAL, TIME_RANGE
from dashboards.variables import EVERYTHING

FOLDER = Path(__file__).parent / "grafana"

_IN_MENU = model.DashboardLinkPlacement.IN_CONTROLS_MENU
_VARIABLE = re.compile(r"\$\{\w+\}")


@dataclass(frozen=True, slots=True)
class Query:
    """A query of a panel, ready to be sent to Prometheus.

    dashboard: its uid. panel: its title. expression: PromQL without Grafana's variables and macros. instant:
    whether the panel makes an instant query or a range query.
    """

    dashboard: str
    panel: str
    expression: str
    instant: bool


@dataclass(frozen=True, slots=True)
class LabelValues:
    """The query of a variable: the values of a label among the series of a selector."""

    dashboard: str
    variable: str
    label: str
    selector: str


def specs() -> list[Spec]:
    """All dashboards; the overview is the first."""
    return [overview.spec(), job_type.spec(), queues.spec(), workers.spec(), exporter.spec()]


def files() -> dict[str, str]:
    """The content of each dashboard's file, by file name."""
    return {f"{spec.uid}.json": json.dumps(_json(spec.build()), indent=2, sort_keys=True) + "\n" for spec in specs()}


def queries(*, rate_interval: str = "1m", interval: str = "15s", time_range: str = "1h") -> list[Query]:
    """Every query of every panel, with all values chosen in all variables and these values for Grafana's macros."""
    macros = {RATE_INTERVAL: rate_interval, "$__interval": interval, TIME_RANGE: time_range}
    return [
        Query(spec.uid, panel.title or "", filled(target.expr, macros), bool(target.instant))
        for spec in specs()
        for panel in panels(spec.build())
        for target in panel.targets or []
        if isinstance(target, Dataquery)
    ]


def label_values() -> list[LabelValues]:
    """Every query of every variable, with all values chosen in the variables before it."""
    return [
        LabelValues(spec.uid, variable.name, variable.label, filled(variable.selector, {}))
        for spec in specs()
        for variable in spec.variables
    ]


def panels(dashboard: model.Dashboard) -> Iterator[model.Panel]:
    """The panels of a dashboard, without the headings of rows."""
    for panel in dashboard.panels or []:
        if isinstance(panel, model.Panel):
            yield panel
        else:
            yield from panel.panels


def _json(dashboard: model.Dashboard) -> object:
    return _in_sight(json.loads(json.dumps(dashboard, cls=JSONEncoder)))


def _in_sight(part: object) -> object:
    """Remove the placement in the controls menu, which the SDK sets for every link and cannot unset."""
    if isinstance(part, dict):
        return {name: _in_sight(value) for name, value in part.items() if name != "placement" or value != _IN_MENU}
    if isinstance(part, list):
        return [_in_sight(value) for value in part]
    return part


def filled(text: str, macros: Mapping[str, str]) -> str:
    """The text with all values chosen in all variables, and the macros replaced."""
    for macro, value in sorted(macros.items(), reverse=True):  # a longer macro before one with which it begins
        text = text.replace(macro, value)
    return _VARIABLE.sub(EVERYTHING, text)
