"""The exporter's pages as functions from request to answer, independent of server and framework."""

from __future__ import annotations

import gzip
import hashlib
import html
import logging
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from types import MappingProxyType

from prometheus_client.exposition import gzip_accepted

from jobmetrics.exporter.collectors import CollectorState
from jobmetrics.exporter.metrics_page import MetricsPage
from jobmetrics.exporter.registry_reader import DirectoryReading

logger = logging.getLogger("jobmetrics")

TEXT = "text/plain; charset=utf-8"
HTML = "text/html; charset=utf-8"
METHODS = ("GET", "HEAD")
DIRECTORY_HEADER = "X-Jobmetrics-Directory"

# Level 1 compresses a page to a fifteenth, in a quarter of the time that level 6 needs for a sixteenth.
GZIP_LEVEL = 1
# prometheus_client does not read the weight.
_GZIP_REFUSED = re.compile(r"\bgzip\s*;\s*q=0(?:\.0*)?\s*(?:,|\Z)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Request:
    """The parts of a request that the pages use. path: decoded."""

    method: str
    path: str
    accept: str = ""
    accept_encoding: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a request. For HEAD the body is empty, and the headers give the length of the page."""

    status: HTTPStatus
    headers: dict[str, str]
    body: bytes


def answer(
    request: Request,
    body: bytes,
    content_type: str = TEXT,
    status: HTTPStatus = HTTPStatus.OK,
    more: Mapping[str, str] = MappingProxyType({}),
) -> Answer:
    """Make a complete answer to a request.

    Args:
        request: The request.
        body: The complete body, also for HEAD.
        content_type: The content type of the body.
        status: 200 by default.
        more: Further headers.
    """
    headers = {
        "Content-Type": content_type,
        "Content-Length": str(len(body)),
        "X-Content-Type-Options": "nosniff",
        **more,
    }
    return Answer(status, headers, b"" if request.method == "HEAD" else body)


def not_found(request: Request) -> Answer:
    """Answer with status 404."""
    return answer(request, b"not found; there are / /metrics /healthz /readyz\n", status=HTTPStatus.NOT_FOUND)


def not_allowed(request: Request) -> Answer:
    """Answer with status 405."""
    body = b"only GET and HEAD\n"
    return answer(request, body, status=HTTPStatus.METHOD_NOT_ALLOWED, more={"Allow": ", ".join(METHODS)})


def guarded(page: Callable[[Request], Answer], request: Request) -> Answer:
    """Call a page. An error is logged and answered with status 500, without details."""
    try:
        return page(request)
    except Exception:
        logger.exception("jobmetrics: error in %s", request.path)
        body = b"internal error, see the log of the exporter\n"
        return answer(request, body, status=HTTPStatus.INTERNAL_SERVER_ERROR)


def fingerprint(path: str) -> str:
    """Return a digest of a directory's path, which identifies the directory without revealing its path."""
    return hashlib.sha256(os.path.realpath(path).encode("utf-8", "surrogateescape")).hexdigest()[:16]


def metrics(page: MetricsPage, directory: str, request: Request) -> Answer:
    """Answer with the metrics in a format that the client accepts, under any path.

    Args:
        page: Writes the metrics.
        directory: Fingerprint of the registry directory. It becomes a header, which `jobmetrics check` reads to
            recognise an exporter that is mounted in a web process.
        request: The request.
    """
    if request.method not in METHODS:
        return not_allowed(request)
    body, content_type = page.write(request.accept)
    more = {"Vary": "Accept, Accept-Encoding", "Cache-Control": "no-store", DIRECTORY_HEADER: directory}
    if gzip_accepted(request.accept_encoding) and not _GZIP_REFUSED.search(request.accept_encoding):
        body = gzip.compress(body, GZIP_LEVEL, mtime=0)
        more["Content-Encoding"] = "gzip"
    return answer(request, body, content_type, more=more)


def healthz(request: Request) -> Answer:
    """Answer with status 200 while the process runs."""
    return answer(request, b"ok\n")


def readyz(request: Request, reason: str | None) -> Answer:
    """Answer with status 200 if the directory can be read, else 503. reason: why it cannot be read."""
    if reason is None:
        return answer(request, b"ready\n")
    body = f"not ready: {reason}\n".encode("utf-8", "backslashreplace")
    return answer(request, body, status=HTTPStatus.SERVICE_UNAVAILABLE)


_PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>jobmetrics</title></head>
<body>
<h1>jobmetrics {version}</h1>
<p>Metrics of background jobs, from <code>{directory}</code>: {state}</p>
<ul>
<li><a href="metrics">metrics</a></li>
<li><a href="healthz">healthz</a>: this process answers</li>
<li><a href="readyz">readyz</a>: the registry directory can be read</li>
</ul>
<h2>Queue collectors</h2>
{collectors}
</body>
</html>
"""


def landing(version: str, path: str, reading: DirectoryReading, states: Sequence[CollectorState]) -> bytes:
    """Render the landing page as HTML in UTF-8."""
    page = _PAGE.format(
        version=html.escape(version),
        directory=html.escape(path),
        state=html.escape(_slots(reading)),
        collectors=_collectors(states),
    )
    return page.encode("utf-8", "backslashreplace")


def _slots(reading: DirectoryReading) -> str:
    found = reading.snapshot
    if found is None:
        return f"not readable, {reading.reason}"
    return f"{found.live} live slots, {found.free} free, {found.damaged} damaged; {found.series} series"


def _collectors(states: Sequence[CollectorState]) -> str:
    if not states:
        return "<p>None: no broker is configured.</p>"
    rows = "".join(
        f"<tr><td>{html.escape(state.name)}</td><td>{html.escape(state.broker)}</td>"
        f"<td>{html.escape(_last_reading(state))}</td></tr>\n"
        for state in states
    )
    return f"<table>\n<tr><th>collector</th><th>broker</th><th>last reading</th></tr>\n{rows}</table>"


def _last_reading(state: CollectorState) -> str:
    if state.up is None:
        return "not yet"
    if state.error is not None:
        return state.error
    took = "" if state.duration is None else f", in {state.duration:.3f} s"
    return f"{len(state.readings)} values{took}"
