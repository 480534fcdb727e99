"""How `jobmetrics top` summarises metrics."""

from __future__ import annotations

import math

import pytest
from prometheus_client.parser import text_string_to_metric_families

from jobmetrics.exporter.overview import quantile, rows, summarize

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
        (0.5, {INF: 10, 2.0: 10, 1.0: 0}, 1.5),
    ],
)
def test_a_quantile_is_interpolated_within_its_bucket_as_promql_does(
    share: float, buckets: dict[float, float], expected: float
) -> None:
    assert quantile(buckets, share) == pytest.approx(expected)


@pytest.mark.parametrize("buckets", [{}, {1.0: 0, INF: 0}, {1.0: 3}, {INF: 3}])
def test_a_histogram_without_observations_or_bounds_has_no_quantile(buckets: dict[float, float]) -> None:
    assert quantile(buckets, 0.5) is None


def test_another_programs_histogram_of_the_same_name_is_ignored() -> None:
    text = 'jobs_duration_seconds_bucket{job_type="a"} 3\njobs_total{job_type="a",status="success"} 2\n'
    (row,) = rows(summarize(text_string_to_metric_families(text), 0.0), None)
    assert (row.key, row.duration) == (("", "a", ""), (None, None))
