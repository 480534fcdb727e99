"""Instruments: they record into the directory of the active settings, from any thread and forked process."""

from __future__ import annotations

from jobmetrics.instruments.adhoc import Batch, duration, increment, observe, set_gauge
from jobmetrics.instruments.bound import BoundCounter, BoundGauge, BoundHistogram, BoundSumGauge
from jobmetrics.instruments.definition import Labelled, define, follow, label_value
from jobmetrics.instruments.metrics import Counter, Gauge, Histogram

__all__ = [
    "Batch",
    "BoundCounter",
    "BoundGauge",
    "BoundHistogram",
    "BoundSumGauge",
    "Counter",
    "Gauge",
    "Histogram",
    "Labelled",
    "define",
    "duration",
    "follow",
    "increment",
    "label_value",
    "observe",
    "set_gauge",
]
