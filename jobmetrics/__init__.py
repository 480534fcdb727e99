"""Prometheus metrics of background jobs that stay correct across forks, crashes and restarts."""

from __future__ import annotations

from jobmetrics.decorators import add_items, items, stage, timed_job
from jobmetrics.errors import JobmetricsError
from jobmetrics.instruments import Batch, Counter, Gauge, Histogram, duration, increment, observe, set_gauge
from jobmetrics.job_context import CurrentJob, current_job
from jobmetrics.registry import refresh
from jobmetrics.settings import configure

__version__ = "0.1.0"
__all__ = [
    "Batch",
    "Counter",
    "CurrentJob",
    "Gauge",
    "Histogram",
    "JobmetricsError",
    "add_items",
    "configure",
    "current_job",
    "duration",
    "increment",
    "items",
    "observe",
    "refresh",
    "set_gauge",
    "stage",
    "timed_job",
]
