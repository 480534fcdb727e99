"""Prometheus metrics of Celery and RQ jobs that stay true across forks, crashes and restarts."""

from __future__ import annotations

from jobmetrics.decorators import timed_job
from jobmetrics.errors import JobmetricsError
from jobmetrics.instruments import Batch, Counter, Gauge, Histogram
from jobmetrics.settings import Settings, configure

__version__ = "0.1.0"
__all__ = ["Batch", "Counter", "Gauge", "Histogram", "JobmetricsError", "Settings", "configure", "timed_job"]
