"""Dashboards built from rows of panels, and links between dashboards.

They have Grafana's classic model, which every version imports and provisions from files. Schema v2 needs Grafana 13.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.models import dashboard as model

from dashboards.panels import Panel
from dashboards.promql import Scope
from dashboards.variables import Variable, datasource, filters

# Never change these: users' bookmarks contain them.
OVERVIEW = "jobmetrics-overview"
JOB_TYPE = "jobmetrics-job-type"
QUEUES = "jobmetrics-queues"
WORKERS = "jobmetrics-workers"
EXPORTER = "jobmetrics-exporter"

_TAG = "jobmetrics"


@dataclass(frozen=True, slots=True)
class Row:
    """Panels under a heading."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True, slots=True)
class Spec:
    """A dashboard before it is built. uid: the name of its file, and its id in Grafana's addresses."""

    uid: str
    title: str
    description: str
    variables: tuple[Variable, ...]
    rows: Sequence[Row]

    def build(self) -> model.Dashboard:
        """Build Grafana's model of the dashboard."""
        builder = (
            build.Dashboard(f"Jobs / {self.title}")
            .uid(self.uid)
            .description(self.description)
            .tags([_TAG])
            .time("now-1h", "now")
            .refresh("30s")
            .timezone("browser")
            .tooltip(model.DashboardCursorSync.CROSSHAIR)
            .editable()
            .annotations([])
            .variables([datasource(), *(variable.builder for variable in self.variables), filters()])
            .link(_to_all())
        )
        for row in self.rows:
            builder = builder.with_row(build.Row(row.title))
            for panel in row.panels:
                builder = builder.with_panel(panel)
        made = builder.build()
        for number, panel_or_row in enumerate(made.panels or [], start=1):
            panel_or_row.id_val = number
        return made


def scope(variables: tuple[Variable, ...]) -> Scope:
    """The series that a dashboard with these variables shows."""
    return Scope(variables)


def link(title: str, uid: str, kept: Sequence[Variable], **chosen: str) -> build.DashboardLink:
    """A link from a cell or a line to another dashboard, with the same time range.

    kept: variables that keep their values. chosen: new values of variables, such as ${__value.raw}.
    """
    passed = [f"${{{name}:queryparam}}" for name in ("datasource", *(variable.name for variable in kept), "filters")]
    passed += [f"var-{name}={value}" for name, value in chosen.items()]
    return build.DashboardLink(title).url(f"/d/{uid}?${{__url_time_range}}&" + "&".join(passed))


def _to_all() -> build.DashboardLink:
    return (
        build.DashboardLink("Job dashboards")
        .type(model.DashboardLinkType.DASHBOARDS)
        .tags([_TAG])
        .as_dropdown(as_dropdown=False)
        .include_vars(include_vars=True)
        .keep_time(keep_time=True)
    )
