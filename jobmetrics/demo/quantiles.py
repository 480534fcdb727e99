"""Quantiles of a Prometheus histogram."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping

from jobmetrics.demo.scrape import Exposition


def quantile(share: float, buckets: Mapping[float, float]) -> float | None:
    """The value below which `share` (0 to 1) of the observations lie; None if there are none.

    `buckets` holds cumulative counts by upper bound, +Inf included. Linear interpolation within a
    bucket, and the highest finite bound for what lies beyond it, as PromQL's histogram_quantile does.
    """
    bounds = sorted(buckets)
    if not bounds or not math.isinf(bounds[-1]) or buckets[bounds[-1]] == 0:
        return None
    rank = share * buckets[bounds[-1]]
    lower, below = 0.0, 0.0
    for bound in bounds:
        if buckets[bound] >= rank and buckets[bound] > below:
            if math.isinf(bound):
                return lower if len(bounds) > 1 else None
            return lower + (bound - lower) * (rank - below) / (buckets[bound] - below)
        if not math.isinf(bound):
            lower, below = bound, buckets[bound]
    return None


def of_histogram(exposition: Exposition, name: str, share: float, labels: Mapping[str, str]) -> float | None:
    """The quantile over all series of histogram `name` that carry `labels`, in the metric's unit."""
    buckets: dict[float, float] = defaultdict(float)
    for sample in exposition.samples(f"{name}_bucket", labels):
        buckets[float(sample.labels["le"])] += sample.value
    return quantile(share, buckets)
