"""The pages as a WSGI application, without a server."""

from __future__ import annotations

import gzip
from typing import Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from jobmetrics.exporter.collectors import CollectorState
from jobmetrics.exporter.landing import landing
from jobmetrics.exporter.pages import MetricsPage, Pages
from jobmetrics.exporter.registry_reader import DirectoryReading
from jobmetrics.exporter.wsgi import wsgi_app


def ask(
    path: str,
    method: str = "GET",
    accept: str | None = None,
    reason: str | None = None,
    *,
    encoding: str = "",
    broken: bool = False,
) -> tuple[int, dict[str, str], bytes]:
    def collect() -> list[Metric]:
        if broken:
            raise ValueError("a secret")
        return [GaugeMetricFamily("y", "Help.", value=2)]

    reading = DirectoryReading(None, reason, 0.0)
    states = [CollectorState("rq", "main", False, error="redis://***@h is <down>"), CollectorState("rq", "other")]
    pages = Pages(MetricsPage(collect), lambda: reason, lambda: landing("1.2<3", "/a & b", reading, states))
    environ: dict[str, Any] = {"PATH_INFO": path, "REQUEST_METHOD": method, "QUERY_STRING": "", "SCRIPT_NAME": ""}
    environ["HTTP_ACCEPT_ENCODING"] = encoding
    if accept is not None:
        environ["HTTP_ACCEPT"] = accept
    setup_testing_defaults(environ)
    answer: list[Any] = []
    application = validator(wsgi_app(pages))
    parts = application(environ, lambda status, headers: answer.extend([status, dict(headers)]))  # type: ignore[arg-type]
    body = b"".join(parts)
    parts.close()  # type: ignore[attr-defined]  # the validator wants it
    return int(answer[0].split()[0]), answer[1], body


@pytest.mark.parametrize("accept", [None, "", "*/*", "text/plain", "text/html"])
def test_metrics_are_text_unless_something_better_is_asked_for(accept: str | None) -> None:
    status, headers, body = ask("/metrics", accept=accept)
    assert (status, headers["Content-Type"].split(";")[0]) == (200, "text/plain")
    assert [sample.value for metric in parse_text(body.decode()) for sample in metric.samples] == [2.0]


def test_a_version_that_is_none_breaks_nothing() -> None:
    assert ask("/metrics", accept="application/openmetrics-text;version=x")[0] == 200


def test_metrics_are_openmetrics_when_prometheus_asks_for_it() -> None:
    accept = "application/openmetrics-text;version=1.0.0;q=0.5,text/plain;version=0.0.4;q=0.3,*/*;q=0.1"
    _, headers, body = ask("/metrics", accept=accept)
    assert headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0")
    assert body.endswith(b"# EOF\n")
    metrics = parse_openmetrics(body.decode())  # type: ignore[no-untyped-call]  # ships no types
    assert [sample.value for metric in metrics for sample in metric.samples] == [2.0]


@pytest.mark.parametrize("path", ["/", "/metrics", "/healthz", "/readyz"])
def test_head_is_get_without_the_body(path: str) -> None:
    status, headers, body = ask(path)
    assert (status, headers["Content-Length"]) == (200, str(len(body)))
    assert ask(path, "HEAD") == (status, headers, b"")


def test_readiness_tells_the_reason() -> None:
    assert ask("/readyz")[::2] == (200, b"ready\n")
    assert ask("/readyz", reason="/x is \ud800 gone")[::2] == (503, b"not ready: /x is \\ud800 gone\n")
    assert ask("/healthz", reason="/x is gone")[::2] == (200, b"ok\n")


def test_gzip_is_given_to_those_who_take_it() -> None:
    _, plain_headers, plain = ask("/metrics")
    _, headers, body = ask("/metrics", encoding="gzip, deflate")
    assert "Content-Encoding" not in plain_headers
    assert headers["Content-Encoding"] == "gzip"
    assert headers["Content-Length"] == str(len(body))
    assert plain_headers["Vary"] == headers["Vary"] == "Accept, Accept-Encoding"
    assert gzip.decompress(body) == plain


def test_the_landing_page_tells_of_the_directory_and_the_collectors() -> None:
    _, _, body = ask("/", reason="/a & b is gone")
    assert b"not readable, /a &amp; b is gone" in body
    assert b"<td>redis://***@h is &lt;down&gt;</td>" in body
    assert b"<td>other</td><td>not yet</td>" in body


def test_the_landing_page_escapes_what_it_shows() -> None:
    status, headers, body = ask("/")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert b"1.2&lt;3" in body
    assert b"/a &amp; b" in body


@pytest.mark.parametrize("path", ["/metrics/", "/x", "//", "/metrics%00"])
def test_anything_else_is_not_found(path: str) -> None:
    assert ask(path)[0] == 404
    assert ask(path, "POST")[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_other_methods_are_refused_naming_those_allowed(method: str) -> None:
    status, headers, _ = ask("/metrics", method)
    assert (status, headers["Allow"]) == (405, "GET, HEAD")


def test_an_error_is_a_500_that_tells_nothing(caplog: pytest.LogCaptureFixture) -> None:
    status, _, body = ask("/metrics", broken=True)
    assert status == 500
    assert b"secret" not in body
    assert "error in /metrics" in caplog.text
