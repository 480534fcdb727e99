from __future__ import annotations

import math

import pytest

from jobmetrics.demo.quantiles import of_histogram, quantile
from jobmetrics.demo.scrape import Exposition

INF = math.inf


@pytest.mark.parametrize(
    ("share", "buckets", "expected"),
    [
        (0.5, {1.0: 10, INF: 10}, 0.5),
        (0.5, {1.0: 0, 2.0: 10, INF: 10}, 1.5),
        (0.95, {1.0: 50, 2.0: 100, INF: 100}, 1.9),
        (0.5, {1.0: 5, 2.0: 5, 4.0: 10, INF: 10}, 1.0),
        (0.51, {1.0: 5, 2.0: 5, 4.0: 10, INF: 10}, 2.04),
        (0.95, {1.0: 1, 2.0: 1, INF: 10}, 2.0),
        (0.0, {1.0: 0, 2.0: 4, INF: 4}, 1.0),
        (1.0, {1.0: 2, 2.0: 4, INF: 4}, 2.0),
    ],
)
def test_interpolates_within_the_bucket_as_promql_does(
    share: float, buckets: dict[float, float], expected: float
) -> None:
    assert quantile(share, buckets) == pytest.approx(expected)


@pytest.mark.parametrize("buckets", [{}, {1.0: 0, INF: 0}, {1.0: 3}, {INF: 3}])
def test_says_nothing_where_nothing_is_known(buckets: dict[float, float]) -> None:
    assert quantile(0.5, buckets) is None


def test_adds_the_series_of_a_job_type() -> None:
    lines = [
        f'wait_bucket{{job_type="{job}",queue_name="{queue}",le="{le}"}} {count}'
        for job, queue, counts in (("a", "x", (4, 4)), ("a", "y", (0, 4)), ("b", "x", (0, 90)))
        for le, count in zip(("1.0", "2.0"), counts, strict=True)
    ]
    lines += [
        'wait_bucket{job_type="a",queue_name="x",le="+Inf"} 4',
        'wait_bucket{job_type="a",queue_name="y",le="+Inf"} 4',
        'wait_bucket{job_type="b",queue_name="x",le="+Inf"} 90',
    ]
    exposition = Exposition("\n".join(lines) + "\n")
    assert of_histogram(exposition, "wait", 0.75, {"job_type": "a"}) == pytest.approx(1.5)
    assert of_histogram(exposition, "wait", 0.75, {"job_type": "c"}) is None
