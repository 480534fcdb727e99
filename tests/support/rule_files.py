"""The shipped rules as data."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[2]
RULES = ROOT / "rules"
RECORDING, ALERTS = RULES / "jobmetrics.recording.yml", RULES / "jobmetrics.alerts.yml"
TESTS = tuple(sorted((RULES / "tests").glob("*.test.yml")))


@dataclass(frozen=True)
class Rule:
    """A rule. name: that of the series it records, or of the alert."""

    group: str
    name: str
    expression: str
    is_alert: bool
    labels: dict[str, str] = field(default_factory=dict)
    annotations: dict[str, str] = field(default_factory=dict)


def rules() -> list[Rule]:
    """All rules, recording rules first: alerts may use the recorded series."""
    return [rule for path in (RECORDING, ALERTS) for rule in _of_file(path)]


def alerts() -> list[Rule]:
    return [rule for rule in rules() if rule.is_alert]


def _of_file(path: Path) -> Iterator[Rule]:
    for group in yaml.safe_load(path.read_text())["groups"]:
        for rule in group["rules"]:
            yield Rule(
                group["name"],
                rule.get("alert") or rule["record"],
                rule["expr"],
                "alert" in rule,
                rule.get("labels", {}),
                rule.get("annotations", {}),
            )
