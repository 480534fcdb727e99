from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

if sys.version_info < (3, 11):
    pytest.skip("grafana-foundation-sdk needs Python 3.11", allow_module_level=True)

from grafana_foundation_sdk.models.dashboard import Panel

from dashboards import overview
from dashboards.plots import IMAGE, TITLES, Curve, draw
from dashboards.shipped import panels
from dashboards.staging import Phase, Story

STORY = Story("unused", 1000.0, 1300.0, [Phase("things go wrong", 1060.0, 1120.0)])
RISING = {minute / 30: float(minute) for minute in range(150)}


def chosen() -> list[Panel]:
    found = {panel.title: panel for panel in panels(overview.spec().build())}
    return [found[title] for title in TITLES]


def texts(image: str) -> list[str]:
    return [text.strip() for text in re.findall(r"<text[^>]*>([^<]*)</text>", image)]


def drawn(path: Path) -> bytes:
    first, *others = chosen()
    stacked = [Curve("failure", RISING), Curve("success", RISING)]
    draw(STORY, [(first, stacked), *((panel, [Curve("p95", RISING)]) for panel in others)], path)
    return path.read_bytes()


def test_plots_contain_their_text(tmp_path: Path) -> None:
    found = texts(drawn(tmp_path / "image.svg").decode())
    assert set(TITLES) <= set(found)
    assert {"failure", "success", "p95", "things go wrong", "minutes"} <= set(found)


def test_the_same_data_gives_the_same_file(tmp_path: Path) -> None:
    assert drawn(tmp_path / "one.svg") == drawn(tmp_path / "two.svg")


def test_a_panel_without_data_is_not_drawn_empty(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no data for the panel Executions by status"):
        draw(STORY, [(panel, []) for panel in chosen()], tmp_path / "image.svg")
    assert not (tmp_path / "image.svg").exists()


def test_lines_end_without_data(tmp_path: Path) -> None:
    gap = {at: value for at, value in RISING.items() if not 1.0 < at < 3.0}
    first, *others = chosen()
    draw(
        STORY,
        [(first, [Curve("success", RISING)]), *((panel, [Curve("p95", gap)]) for panel in others)],
        tmp_path / "a.svg",
    )
    drawn(tmp_path / "b.svg")
    with_gap, without = ((tmp_path / name).read_text().count("\nM ") for name in ("a.svg", "b.svg"))
    assert with_gap > without


def test_the_image_in_the_repository_shows_these_panels() -> None:
    image = IMAGE.read_text(encoding="utf-8")
    assert set(TITLES) <= set(texts(image))
    assert len(image) < 200_000
