"""Draw panels of the overview from real data, for the README: `python -m dashboards.plots`.

It runs the examples on a separate Redis with an exporter and a Prometheus, and lets things go wrong for a while. Then
it sends the panels' queries to Prometheus and writes docs/images/overview.svg.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import re
import sys
import urllib.parse
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from grafana_foundation_sdk.models.common import StackingMode
from grafana_foundation_sdk.models.dashboard import FieldConfig, Panel
from grafana_foundation_sdk.models.prometheus import Dataquery
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

from dashboards import overview
from dashboards.panels import BLUE, GREEN, GREY, ORANGE, PURPLE, QUANTILES, RED, STATUS_COLOURS
from dashboards.promql import RATE_INTERVAL
from dashboards.shipped import filled, panels
from dashboards.staging import MIN_SECONDS, RATE_SECONDS, SCRAPE_SECONDS, Phase, Story, played

IMAGE = Path(__file__).parent.parent / "docs" / "images" / "overview.svg"

TITLES = ("Executions by status", "Running, and capacity", "Age of the oldest waiting job", "Wait in the queue")

TONES = {GREEN: "#4c9f50", ORANGE: "#e08a1e", RED: "#d03b3b", BLUE: "#3b6fd0", PURPLE: "#8a4fc4", GREY: "#8e8e8e"}
MEANINGS = {**STATUS_COLOURS, **dict(QUANTILES.values())}
OTHERS = [TONES[colour] for colour in (BLUE, ORANGE, GREEN, PURPLE, RED, GREY)]

SHADE = "#d03b3b"
SUFFIXES = {"s": " s", "ops": "/s"}


@dataclass(frozen=True, slots=True)
class Curve:
    """One line of a panel: its name, and its values by minutes since the start."""

    name: str
    values: Mapping[float, float]


def ask(story: Story, panel: Panel) -> list[Curve]:
    """Prometheus' answers to a panel's queries over the recorded time."""
    targets = (target for target in panel.targets or [] if isinstance(target, Dataquery))
    return [curve for target in targets for curve in _ask(story, target)]


def _ask(story: Story, target: Dataquery) -> list[Curve]:
    expression = filled(target.expr, {RATE_INTERVAL: f"{RATE_SECONDS}s"})
    asked = {"query": expression, "start": story.start, "end": story.end, "step": SCRAPE_SECONDS}
    url = f"{story.prometheus}/api/v1/query_range?{urllib.parse.urlencode(asked)}"
    with urllib.request.urlopen(url, timeout=30) as response:  # noqa: S310 - a Prometheus of this program, on loopback
        found = json.load(response)["data"]["result"]
    curves = [_curve(series, target.legend_format or "", story.start) for series in found]
    return sorted(curves, key=lambda curve: curve.name)


def _curve(series: Mapping[str, Any], legend: str, start: float) -> Curve:
    name = re.sub(r"{{(\w+)}}", lambda label: str(series["metric"].get(label[1], "")), legend)
    values = ((at, float(value)) for at, value in series["values"])
    return Curve(name, {(at - start) / 60: value for at, value in values if not math.isnan(value)})


def draw(story: Story, drawn: Sequence[tuple[Panel, Sequence[Curve]]], path: Path) -> None:
    """Draw four panels with their curves over one time axis."""
    with mpl.rc_context():
        _set_style()
        figure, grid = plt.subplots(2, 2, figsize=(10.5, 6.0), sharex=True, layout="constrained")
        for axes, (panel, curves) in zip(grid.flat, drawn, strict=True):
            for phase in story.phases:
                _shade(axes, phase, story.start)
            _draw(axes, panel, curves)
        for axes in grid[-1]:
            axes.set_xlabel("minutes")
        grid.flat[0].set_xlim(0, (story.end - story.start) / 60)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None} if path.suffix == ".svg" else None)
        plt.close(figure)


def _set_style() -> None:
    mpl.rc("svg", fonttype="none", hashsalt="jobmetrics")  # text stays text; the same data gives the same file
    mpl.rc("font", family=["DejaVu Sans", "sans-serif"], size=9)
    mpl.rc("axes", titlesize=10, titleweight="bold", titlelocation="left", titlepad=16, edgecolor="#999999", grid=True)
    mpl.rc("axes.spines", top=False, right=False)
    mpl.rc("grid", color="#e6e6e6")
    mpl.rc("legend", frameon=True, framealpha=0.8, edgecolor="none", fontsize=8)


def _draw(axes: Axes, panel: Panel, curves: Sequence[Curve]) -> None:
    if not curves:
        raise SystemExit(f"Prometheus has no data for the panel {panel.title}")
    axes.set_title(panel.title or "")
    (_stack if _stacked(panel) else _lines)(axes, curves)
    axes.set_ylim(0, 1.3 * axes.get_ylim()[1])  # room for the legend
    axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(_units(panel)))
    axes.legend(loc="upper left", ncols=2)


def _lines(axes: Axes, curves: Sequence[Curve]) -> None:
    for index, curve in enumerate(curves):
        colour = TONES[MEANINGS[curve.name]] if curve.name in MEANINGS else OTHERS[index % len(OTHERS)]
        timestamps = _timestamps([curve])
        values = [curve.values.get(at, float("nan")) for at in timestamps]
        axes.plot(timestamps, values, color=colour, linewidth=1.6, label=curve.name)


def _stack(axes: Axes, curves: Sequence[Curve]) -> None:
    timestamps = _timestamps(curves)
    layers = [[curve.values.get(at, 0.0) for at in timestamps] for curve in curves]
    colours = [TONES[MEANINGS[curve.name]] for curve in curves]
    axes.stackplot(timestamps, layers, labels=[curve.name for curve in curves], colors=colours, alpha=0.8, linewidth=0)


def _timestamps(curves: Sequence[Curve]) -> list[float]:
    """The timestamps of all values, and one in each gap, so that lines end at gaps."""
    known = sorted({at for curve in curves for at in curve.values})
    step = SCRAPE_SECONDS / 60
    gaps = [before + step for before, after in itertools.pairwise(known) if after - before > 1.5 * step]
    return sorted([*known, *gaps])


def _shade(axes: Axes, phase: Phase, start: float) -> None:
    left, right = (phase.start - start) / 60, (phase.end - start) / 60
    axes.axvspan(left, right, color=SHADE, alpha=0.08, linewidth=0)
    middle, above = (left + right) / 2, axes.get_xaxis_transform()
    axes.text(middle, 1.01, phase.what, transform=above, color=SHADE, ha="center", va="bottom", fontsize=8)


def _units(panel: Panel) -> Callable[[float, float], str]:
    suffix = SUFFIXES.get(_defaults(panel).unit or "", "")
    return lambda value, _: f"{value:g}{suffix}"


def _stacked(panel: Panel) -> bool:
    custom: Any = _defaults(panel).custom
    return custom.stacking is not None and bool(custom.stacking.mode == StackingMode.NORMAL)


def _defaults(panel: Panel) -> FieldConfig:
    assert panel.field_config is not None, "the builders give every panel one"
    return panel.field_config.defaults


def main() -> int:
    """The command; returns its exit code."""
    parser = argparse.ArgumentParser(prog="python -m dashboards.plots", description=__doc__)
    parser.add_argument(
        "--seconds", type=float, default=300.0, help=f"length of the time axis, {MIN_SECONDS} or more (300)"
    )
    parser.add_argument("--image", type=Path, default=IMAGE, help="where to draw: .svg or .png")
    options = parser.parse_args()
    if options.seconds < MIN_SECONDS:
        parser.error(f"--seconds must be {MIN_SECONDS} or more")
    found = {panel.title: panel for panel in panels(overview.spec().build())}
    with played(options.seconds) as story:
        draw(story, [(found[title], ask(story, found[title])) for title in TITLES], options.image)
    return 0


if __name__ == "__main__":
    sys.exit(main())
