"""The Grafana dashboards, written in Python so that no query can name a metric or a label that does not exist.

`python -m dashboards` writes them to dashboards/grafana as JSON; with `--check` it only checks whether they are
up to date. It needs Python 3.11, as grafana-foundation-sdk does.
"""

from __future__ import annotations

from dashboards.shipped import LabelValues, Query, label_values, queries

_FIRST_EVENT = "the counter appears with its first event, which may never happen"

MAY_BE_EMPTY: dict[str, str] = {"Alerts firing": "none may fire"} | dict.fromkeys(
    (
        "Executions of unknown duration",
        "Internal errors",
        "Internal errors, by place",
        "Series dropped",
        "Updates dropped",
        "Updates dropped, by reason",
        "Withdrawn jobs",
        "Withdrawn, by reason",
    ),
    _FIRST_EVENT,
)
"""Panels that may have no data in a healthy set-up: the reason by title."""

__all__ = ["MAY_BE_EMPTY", "LabelValues", "Query", "label_values", "queries"]
