"""What a client gets for what it accepts."""

from __future__ import annotations

import pytest

from jobmetrics.exporter.negotiation import OPENMETRICS, OPENMETRICS_0, TEXT, Format, accepts_gzip, best_format

PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
TEXT_FIRST = "text/plain;version=0.0.4;q=0.6,application/openmetrics-text;version=1.0.0;q=0.5,*/*;q=0.2"


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("", TEXT),
        ("*/*", TEXT),
        ("text/*", TEXT),
        ("text/html,application/xhtml+xml,*/*;q=0.8", TEXT),
        ("image/png", TEXT),
        (PROMETHEUS_2, OPENMETRICS),
        (PROMETHEUS_3, OPENMETRICS),
        (TEXT_FIRST, TEXT),
        ("application/openmetrics-text", OPENMETRICS),
        ("Application/OpenMetrics-Text; Version=1.0.0", OPENMETRICS),
        ('application/openmetrics-text; version="1.0.0"', OPENMETRICS),
        ("application/openmetrics-text;version=0.0.1", OPENMETRICS_0),
        ("application/openmetrics-text;version=2.0.0,text/plain;q=0.1", TEXT),
        ("application/openmetrics-text;version=1.0.0;q=0.1,text/plain;q=0.9", TEXT),
        ("application/openmetrics-text,text/plain", OPENMETRICS),
        ("text/plain,application/openmetrics-text", TEXT),
        ("application/*", OPENMETRICS),
        ("application/openmetrics-text;q=0", TEXT),
        ("text/plain;q=0,*/*", OPENMETRICS),
        ("application/openmetrics-text;q=many,text/plain", TEXT),
        ("application/openmetrics-text;q=nan,text/plain", TEXT),
        ("application/openmetrics-text;q=7,text/plain", TEXT),
        (",;=,;q=,", TEXT),
        ("application/openmetrics-text," * 100_000, OPENMETRICS),
    ],
)
def test_the_format_a_client_likes_best(accept: str, chosen: Format) -> None:
    assert best_format(accept) is chosen


@pytest.mark.parametrize(
    ("accept_encoding", "taken"),
    [
        ("", False),
        ("gzip", True),
        ("GZIP", True),
        ("x-gzip", True),
        ("deflate, gzip;q=0.5", True),
        ("gzip;q=0", False),
        ("gzip;q=0.000, *", False),
        ("*", True),
        ("*;q=0", False),
        ("identity", False),
        ("br, zstd", False),
    ],
)
def test_gzip_is_for_those_who_take_it(accept_encoding: str, taken: bool) -> None:
    assert accepts_gzip(accept_encoding) is taken
