"""Functions that make panels. All panels look alike and have a unit, a description and a text for missing data."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol, Self, TypeVar

from grafana_foundation_sdk.builders import common as build_common
from grafana_foundation_sdk.builders import dashboard as build
from grafana_foundation_sdk.builders import heatmap as build_heatmap
from grafana_foundation_sdk.builders import prometheus, stat, statetimeline, table, timeseries
from grafana_foundation_sdk.cog.builder import Builder
from grafana_foundation_sdk.models import common, dashboard
from grafana_foundation_sdk.models.heatmap import HeatmapColorMode
from grafana_foundation_sdk.models.prometheus import PromQueryFormat

from dashboards.promql import BOUND_LABEL, Expr, QueryError
from dashboards.variables import DATASOURCE
from jobmetrics.events import FAILURE, IGNORED, REJECTED, RETRY, REVOKED, STATUSES, SUCCESS

GREEN, ORANGE, RED, BLUE, PURPLE, GREY = "green", "orange", "red", "blue", "purple", "#8e8e8e"
STATUS_COLOURS = {SUCCESS: GREEN, FAILURE: RED, RETRY: ORANGE, IGNORED: GREY, REJECTED: PURPLE, REVOKED: BLUE}
COUNT = "locale"  # Grafana's unit of plain numbers: 12,345
QUANTILES = {0.5: ("p50", BLUE), 0.95: ("p95", ORANGE), 0.99: ("p99", RED)}

Panel = Builder[dashboard.Panel]
Steps = Sequence[tuple[float, str]]

_LEGEND_LABEL = re.compile(r"{{(\w+)}}")
_NOTHING = "no data"

if set(STATUS_COLOURS) != set(STATUSES):
    raise QueryError("a status has no colour")


class _Builder(Protocol):
    """The methods that the SDK's panel builders share. The SDK has no base class for them."""

    def title(self, title: str) -> Self: ...
    def description(self, description: str) -> Self: ...
    def datasource(self, datasource: common.DataSourceRef) -> Self: ...
    def unit(self, unit: str) -> Self: ...
    def no_value(self, no_value: str) -> Self: ...
    def span(self, w: int) -> Self: ...
    def height(self, h: int) -> Self: ...
    def with_target(self, target: prometheus.Dataquery) -> Self: ...


P = TypeVar("P", bound=_Builder)


@dataclass(frozen=True, slots=True)
class Line:
    """A query, and the legend of its series: text with {{label}}."""

    expr: Expr
    legend: str


@dataclass(frozen=True, slots=True)
class Frame:
    """The properties that every panel has.

    unit: one of Grafana's. description: its meaning, and what to do about a problem. nothing: the text that it
    shows without data.
    """

    title: str
    unit: str
    description: str
    width: int
    height: int
    nothing: str = _NOTHING

    def around(self, builder: P, targets: Sequence[prometheus.Dataquery]) -> P:
        """Add these properties and the queries to a builder."""
        builder = (
            builder.title(self.title)
            .description(self.description)
            .unit(self.unit)
            .no_value(self.nothing)
            .datasource(DATASOURCE)
            .span(self.width)
            .height(self.height)
        )
        for index, target in enumerate(targets):
            builder = builder.with_target(target.ref_id(chr(ord("A") + index)))
        return builder


def number(
    title: str,
    unit: str,
    description: str,
    expr: Expr,
    *,
    steps: Steps = (),
    below: str = GREEN,
    width: int = 4,
    nothing: str = _NOTHING,
) -> Panel:
    """One current figure, on the colour of the highest step that it has reached.

    below: the colour under the first step. The query is an instant query, so that a missing figure is not replaced by
    one of ten minutes ago.
    """
    frame = Frame(title, unit, description, width, 4, nothing)
    panel = (
        frame.around(stat.Panel(), [_query(expr, "").instant()])
        .thresholds(_thresholds(steps, below))
        .color_mode(common.BigValueColorMode.BACKGROUND if steps else common.BigValueColorMode.NONE)
        .graph_mode(common.BigValueGraphMode.NONE)
        .reduce_options(build_common.ReduceDataOptions().calcs(["lastNotNull"]))
    )
    return panel.decimals(0) if unit == COUNT else panel  # an increase over time is seldom a whole number


def graph(
    title: str,
    unit: str,
    description: str,
    lines: Sequence[Line],
    *,
    width: int = 8,
    stacked: bool = False,
    limit: float | None = None,
    colours: Mapping[str, str] | None = None,
    links: Sequence[build.DashboardLink] = (),
    nothing: str = _NOTHING,
) -> Panel:
    """Lines over time. limit: an upper bound, shown as a dashed line. colours: by the names of series."""
    frame = Frame(title, unit, description, width, 8, nothing)
    panel = (
        frame.around(timeseries.Panel(), [_query(line.expr, line.legend).range() for line in lines])
        .min(0)
        .line_width(1)
        .fill_opacity(40 if stacked else 8)
        .show_points(common.VisibilityMode.NEVER)
        .legend(
            build_common.VizLegendOptions()
            .display_mode(common.LegendDisplayMode.TABLE)
            .placement(common.LegendPlacement.BOTTOM)
            .show_legend(show_legend=True)
            .calcs(["lastNotNull", "max"])
            .sort_by("Max")
            .sort_desc(sort_desc=True)
        )
        .tooltip(
            build_common.VizTooltipOptions()
            .mode(common.TooltipDisplayMode.MULTI)
            .sort(common.SortOrder.DESCENDING)
        )
    )  # fmt: skip
    if stacked:
        panel = panel.stacking(build_common.StackingConfig().mode(common.StackingMode.NORMAL).group("A"))
    if limit is not None:
        style = build_common.GraphThresholdsStyleConfig().mode(common.GraphThresholdsStyleMode.DASHED)
        panel = panel.thresholds(_thresholds([(limit, RED)])).thresholds_style(style)
    for name, colour in (colours or {}).items():
        panel = panel.override_by_name(name, [_property("color", {"mode": "fixed", "fixedColor": colour})])
    return panel.data_links(list(links)) if links else panel


def quantiles(title: str, description: str, of: Mapping[float, Expr], *, width: int = 8, nothing: str) -> Panel:
    """A graph of the usual quantiles, in seconds and always in the same colours."""
    lines = [Line(expr, QUANTILES[level][0]) for level, expr in of.items()]
    return graph(title, "s", description, lines, width=width, colours=dict(QUANTILES.values()), nothing=nothing)


def heat(title: str, unit: str, description: str, buckets: Expr, *, width: int = 8, nothing: str = _NOTHING) -> Panel:
    """A heat map of a histogram's buckets over time. buckets: an expression with the bound as its only label."""
    if buckets.labels != {BOUND_LABEL}:
        raise QueryError(f"{buckets.text} is not by {BOUND_LABEL} alone")
    frame = Frame(title, unit, description, width, 8, nothing)
    query = _query(buckets, f"{{{{{BOUND_LABEL}}}}}").range().format(PromQueryFormat.HEATMAP)
    return (
        frame.around(build_heatmap.Panel(), [query])
        .calculate(calculate=False)
        .color(build_heatmap.HeatmapColorOptions().mode(HeatmapColorMode.SCHEME).scheme("Oranges").steps(64))
        .y_axis(build_heatmap.YAxisConfig().unit(unit))
        .cell_values(build_heatmap.CellValues().unit("short"))
    )


def states(title: str, description: str, lines: Sequence[Line], *, width: int = 12, nothing: str = _NOTHING) -> Panel:
    """One bar per series over time, which shows 1 as up and 0 as down."""
    frame = Frame(title, "none", description, width, 8, nothing)
    names = {"1": dashboard.ValueMappingResult("up", GREEN), "0": dashboard.ValueMappingResult("down", RED)}
    return (
        frame.around(statetimeline.Panel(), [_query(line.expr, line.legend).range() for line in lines])
        .mappings([dashboard.ValueMap(names)])
        .thresholds(_thresholds([(0, RED), (1, GREEN)]))
        .show_value(common.VisibilityMode.NEVER)
        .merge_values(merge_values=True)
        .row_height(0.8)
    )


@dataclass(frozen=True, slots=True)
class Column:
    """A figure in a table. steps: colours the cell as in `number`."""

    title: str
    unit: str
    expr: Expr
    steps: Steps = ()


def rows(
    title: str,
    description: str,
    by: Mapping[str, str],
    columns: Sequence[Column],
    *,
    links: Mapping[str, build.DashboardLink] | None = None,
    width: int = 24,
    height: int = 9,
    nothing: str = _NOTHING,
) -> Panel:
    """A table of current values: one row per combination of labels, the greatest value of the first column on top.

    by: the title of each label's column. links: the links of each label's column.
    """
    for column in columns:
        if column.expr.labels != set(by):
            raise QueryError(f"column {column.title} of table {title}: {column.expr.text} is not by {', '.join(by)}")
    frame = Frame(title, "none", description, width, height, nothing)
    queries = [_query(column.expr, "").format(PromQueryFormat.TABLE).instant() for column in columns]
    fields = {f"Value #{chr(ord('A') + index)}": column.title for index, column in enumerate(columns)}
    if len(columns) == 1:
        fields["Value"] = columns[0].title  # Grafana's name if there is only one query
    names = {**by, **fields}
    arrange = {
        "excludeByName": {"Time": True},
        "renameByName": names,
        "indexByName": {name: index for index, name in enumerate(names)},
    }
    panel = (
        frame.around(table.Panel(), queries)
        .with_transformation(dashboard.DataTransformerConfig(id_val="merge", options={}))
        .with_transformation(dashboard.DataTransformerConfig(id_val="organize", options=arrange))
        .sort_by([build_common.TableSortByFieldState().display_name(columns[0].title).desc(desc=True)])
        .filterable(filterable=True)
    )
    for column in columns:
        properties = [_property("unit", column.unit)]
        if column.unit == COUNT:
            properties.append(_property("decimals", 0))
        if column.steps:
            properties.append(_property("thresholds", _thresholds(column.steps).build()))
            properties.append(_property("custom.cellOptions", common.TableColorTextCellOptions()))
        panel = panel.override_by_name(column.title, properties)
    for label, link in (links or {}).items():
        panel = panel.override_by_name(by[label], [_property("links", [link.build()])])
    return panel


def _query(expr: Expr, legend: str) -> prometheus.Dataquery:
    if expr.timestamp:
        raise QueryError(f"{expr.text} is a timestamp; show its age")
    for label in _LEGEND_LABEL.findall(legend):
        if label not in expr.labels:
            raise QueryError(f"legend {legend!r}: {expr.text} has no label {label!r}")
    return prometheus.Dataquery().expr(expr.text).legend_format(legend).datasource(DATASOURCE)


def _thresholds(steps: Steps, below: str = GREEN) -> build.ThresholdsConfig:
    found = [dashboard.Threshold(None, below), *(dashboard.Threshold(at, colour) for at, colour in steps)]
    return build.ThresholdsConfig().mode(dashboard.ThresholdsMode.ABSOLUTE).steps(found)


def _property(name: str, value: object) -> dashboard.DynamicConfigValue:
    return dashboard.DynamicConfigValue(name, value)
