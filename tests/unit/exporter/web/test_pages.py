"""The pages without a server: all as ASGI, the metrics alone as ASGI and WSGI."""

from __future__ import annotations

import asyncio
import gzip
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from jobmetrics.exporter.collectors import CollectorState
from jobmetrics.exporter.metrics_page import MetricsPage
from jobmetrics.exporter.registry_reader import DirectoryReading
from jobmetrics.exporter.web import pages
from jobmetrics.exporter.web.apps import asgi_app, site, wsgi_app
from tests.support.readings import until

Reply = tuple[int, dict[str, str], bytes]


@dataclass
class Directory:
    """A registry directory that cannot be read, for a reason."""

    reason: str | None
    path: str = "/a & b"

    def read(self) -> DirectoryReading:
        return DirectoryReading(None, self.reason, 0.0)


class Collectors:
    def states(self) -> list[CollectorState]:
        return [CollectorState("rq", "main", False, error="redis://***@h is <down>"), CollectorState("rq", "other")]


@dataclass
class Shown:
    """The contents of an exporter, with values of the test."""

    metrics: MetricsPage
    directory: Directory
    collectors: Collectors


def metrics_page(*, broken: bool = False) -> MetricsPage:
    def collect() -> list[Metric]:
        if broken:
            raise ValueError("a secret")
        return [GaugeMetricFamily("y", "Help.", value=2)]

    return MetricsPage(collect)


def ask_asgi(application: Any, path: str, method: str, headers: dict[str, str]) -> Reply:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    given = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": method, "path": path, "headers": given, "query_string": b"", "root_path": ""}
    asyncio.run(application(scope, receive, send))
    start, body = sent
    found = {name.decode().title(): value.decode() for name, value in start["headers"]}
    return start["status"], found, body["body"]


def ask_wsgi(application: Any, path: str, method: str, headers: dict[str, str]) -> Reply:
    environ: dict[str, Any] = {"PATH_INFO": path, "REQUEST_METHOD": method, "QUERY_STRING": "", "SCRIPT_NAME": ""}
    environ.update({f"HTTP_{name.upper().replace('-', '_')}": value for name, value in headers.items()})
    setup_testing_defaults(environ)
    answer: list[Any] = []
    parts = validator(application)(environ, lambda status, headers: answer.extend([status, dict(headers)]))  # type: ignore[arg-type]
    body = b"".join(parts)
    parts.close()  # type: ignore[attr-defined]  # the validator wants it
    return int(answer[0].split()[0]), {name.title(): value for name, value in answer[1].items()}, body


def ask(
    path: str,
    method: str = "GET",
    accept: str | None = None,
    reason: str | None = None,
    *,
    encoding: str = "",
    broken: bool = False,
) -> Reply:
    """The exporter's answer; for /metrics, the applications for other web processes must answer the same."""
    headers = {"Accept-Encoding": encoding} | ({} if accept is None else {"Accept": accept})
    metrics = metrics_page(broken=broken)
    shown: Any = Shown(metrics, Directory(reason), Collectors())
    answer = ask_asgi(site(shown), path, method, headers)
    if path == "/metrics":
        page = partial(pages.metrics, metrics, pages.fingerprint(shown.directory.path))
        assert ask_asgi(asgi_app(page), path, method, headers) == answer
        assert ask_wsgi(wsgi_app(page), path, method, headers) == answer
    return answer


@pytest.mark.parametrize("accept", [None, "", "*/*", "text/plain", "text/html"])
def test_metrics_are_text_unless_something_better_is_asked_for(accept: str | None) -> None:
    status, headers, body = ask("/metrics", accept=accept)
    assert (status, headers["Content-Type"].split(";")[0]) == (200, "text/plain")
    assert [sample.value for metric in parse_text(body.decode()) for sample in metric.samples] == [2.0]


def test_an_invalid_version_breaks_nothing() -> None:
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


def test_readiness_shows_the_reason() -> None:
    assert ask("/readyz")[::2] == (200, b"ready\n")
    assert ask("/readyz", reason="/x is \ud800 gone")[::2] == (503, b"not ready: /x is \\ud800 gone\n")
    assert ask("/healthz", reason="/x is gone")[::2] == (200, b"ok\n")


def test_gzip_is_used_for_clients_that_accept_it() -> None:
    _, plain_headers, plain = ask("/metrics")
    _, headers, body = ask("/metrics", encoding="gzip, deflate")
    assert "Content-Encoding" not in plain_headers
    assert headers["Content-Encoding"] == "gzip"
    assert headers["Content-Length"] == str(len(body))
    assert plain_headers["Vary"] == headers["Vary"] == "Accept, Accept-Encoding"
    assert gzip.decompress(body) == plain


def test_the_landing_page_shows_the_directory_and_the_collectors() -> None:
    _, _, body = ask("/", reason="/a & b is gone")
    assert b"not readable, /a &amp; b is gone" in body
    assert b"<td>redis://***@h is &lt;down&gt;</td>" in body
    assert b"<td>other</td><td>not yet</td>" in body


def test_the_landing_page_escapes_what_it_shows() -> None:
    status, headers, body = ask("/")
    assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
    assert b"/a &amp; b" in body
    assert b"1.2&lt;3" in pages.landing("1.2<3", "/", DirectoryReading(None, None, 0.0), [])


@pytest.mark.parametrize("path", ["/metrics/", "/x", "//", "/metrics%00"])
def test_other_paths_are_not_found(path: str) -> None:
    assert ask(path)[0] == 404
    assert ask(path, "POST")[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_other_methods_are_refused_naming_those_allowed(method: str) -> None:
    status, headers, _ = ask("/metrics", method)
    assert (status, headers["Allow"]) == (405, "GET, HEAD")
    assert headers["X-Content-Type-Options"] == "nosniff"


PROMETHEUS_2 = (
    "application/openmetrics-text;version=1.0.0;q=0.5,application/openmetrics-text;version=0.0.1;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
PROMETHEUS_3 = (
    "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.6,"
    "application/openmetrics-text;version=0.0.1;q=0.5,text/plain;version=1.0.0;escaping=allow-utf-8;q=0.4,"
    "text/plain;version=0.0.4;q=0.3,*/*;q=0.2"
)
TEXT, OPENMETRICS = "text/plain; version=0.0.4", "application/openmetrics-text; version=1.0.0"


@pytest.mark.parametrize(
    ("accept", "chosen"),
    [
        ("text/*", TEXT),
        ("text/html,application/xhtml+xml,*/*;q=0.8", TEXT),
        ("image/png", TEXT),
        (PROMETHEUS_2, OPENMETRICS),
        (PROMETHEUS_3, OPENMETRICS),
        ("application/openmetrics-text", OPENMETRICS),
        ("application/openmetrics-text,text/plain", OPENMETRICS),
        ("application/openmetrics-text;version=0.0.1", TEXT),
        ("application/openmetrics-text;version=x", TEXT),
        ('application/openmetrics-text;version="1.0.0"', TEXT),
        (",;=,;q=,", TEXT),
        ("application/openmetrics-text," * 100_000, OPENMETRICS),
    ],
)
def test_the_format_that_a_client_accepts(accept: str, chosen: str) -> None:
    status, headers, body = ask("/metrics", accept=accept)
    assert status == 200
    assert headers["Content-Type"].startswith(f"{chosen}; charset=utf-8")
    assert body.endswith(b"# EOF\n") == (chosen == OPENMETRICS)


@pytest.mark.parametrize(
    ("encoding", "taken"),
    [
        ("", False),
        ("gzip", True),
        ("GZIP", True),
        ("deflate, gzip;q=0.5", True),
        ("gzip;q=0.05, identity", True),
        ("gzip;q=0", False),
        ("GZIP ; Q=0.000, identity", False),
        ("identity", False),
        ("br, zstd", False),
    ],
)
def test_gzip_depends_on_accept_encoding(encoding: str, taken: bool) -> None:
    assert ("Content-Encoding" in ask("/metrics", encoding=encoding)[1]) is taken


def test_metrics_are_collected_for_one_request_at_a_time_and_after_it() -> None:
    began: list[int] = []
    release = threading.Semaphore(0)

    def collect() -> list[Metric]:
        began.append(len(began))
        number = began[-1]
        assert release.acquire(timeout=60)
        assert len(began) == number + 1, "another request began meanwhile"
        return [GaugeMetricFamily("y", "Help.", value=number)]

    page = MetricsPage(collect)
    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(page.text)
        until(lambda: len(began) == 1, "the first to begin")
        later = [pool.submit(page.text) for _ in range(3)]
        release.release(4)
        assert first.result(60).endswith(b"y 0.0\n")
        assert sorted(each.result(60)[-6:] for each in later) == [b"y 1.0\n", b"y 2.0\n", b"y 3.0\n"]


def test_an_error_is_a_500_without_details(caplog: pytest.LogCaptureFixture) -> None:
    status, _, body = ask("/metrics", broken=True)
    assert status == 500
    assert b"secret" not in body
    assert "error in /metrics" in caplog.text
