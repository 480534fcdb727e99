"""The exporter's pages: what is answered to which request, whatever carries it."""

from __future__ import annotations

import hashlib
import logging
import os
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus

from prometheus_client.metrics_core import Metric

from jobmetrics.exporter.negotiation import TEXT as TEXT_FORMAT
from jobmetrics.exporter.negotiation import accepts_gzip, best_format
from jobmetrics.exporter.sharing import Shared

logger = logging.getLogger("jobmetrics")

TEXT = "text/plain; charset=utf-8"
HTML = "text/html; charset=utf-8"
METHODS = ("GET", "HEAD")
DIRECTORY_HEADER = "X-Jobmetrics-Directory"

# Level 1 makes a fifteenth of an exposition in a quarter of the time that level 6 needs for a sixteenth.
GZIP_LEVEL = 1
_GZIP_WINDOW = 16 + zlib.MAX_WBITS  # zlib's way to say: with gzip's header, which holds no time here

Headers = list[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Request:
    """What of a request matters. path: decoded."""

    method: str
    path: str
    accept: str = ""
    accept_encoding: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back; `body` is empty for HEAD while the headers tell its length."""

    status: HTTPStatus
    headers: Headers
    body: bytes


def answer(
    request: Request,
    body: bytes,
    content_type: str = TEXT,
    status: HTTPStatus = HTTPStatus.OK,
    more: Sequence[tuple[str, str]] = (),
) -> Answer:
    """A complete answer to a request."""
    headers = [
        ("Content-Type", content_type),
        ("Content-Length", str(len(body))),
        ("X-Content-Type-Options", "nosniff"),
        *more,
    ]
    return Answer(status, headers, b"" if request.method == "HEAD" else body)


def fingerprint(path: str) -> str:
    """Which directory the metrics are read from, for those who know its path, and without showing it to others."""
    return hashlib.sha256(os.path.realpath(path).encode("utf-8", "surrogateescape")).hexdigest()[:16]


class MetricsPage:
    """The metrics in the format a client likes best.

    collect: everything there is to show now. directory: the fingerprint of the registry directory, a header of each
    answer, by which `jobmetrics check` knows an exporter that is mounted in a web process.
    """

    def __init__(self, collect: Callable[[], Sequence[Metric]], directory: str = "") -> None:
        self._shared = Shared(collect)
        self._headers = [(DIRECTORY_HEADER, directory)] if directory else []

    def text(self) -> bytes:
        """The exposition in Prometheus' text format, now."""
        return self._shared.get(TEXT_FORMAT, TEXT_FORMAT.write)

    def __call__(self, request: Request) -> Answer:
        """The answer to a request for this page, under whatever path; an error is a 500 and a log line."""
        if request.method not in METHODS:
            return not_allowed(request)
        try:
            return self._answer(request)
        except Exception:
            logger.exception("jobmetrics: error in %s", request.path)
            return broken(request)

    def _answer(self, request: Request) -> Answer:
        chosen = best_format(request.accept)
        compress = accepts_gzip(request.accept_encoding)

        def make(metrics: Sequence[Metric]) -> bytes:
            written = chosen.write(metrics)
            return _gzipped(written) if compress else written

        body = self._shared.get((chosen, compress), make)
        more = [("Vary", "Accept, Accept-Encoding"), ("Cache-Control", "no-store"), *self._headers]
        if compress:
            more.append(("Content-Encoding", "gzip"))
        return answer(request, body, chosen.content_type, more=more)


def _gzipped(body: bytes) -> bytes:
    press = zlib.compressobj(GZIP_LEVEL, zlib.DEFLATED, _GZIP_WINDOW)
    return press.compress(body) + press.flush()


def not_allowed(request: Request) -> Answer:
    """405."""
    allowed = [("Allow", ", ".join(METHODS))]
    return answer(request, b"only GET and HEAD\n", status=HTTPStatus.METHOD_NOT_ALLOWED, more=allowed)


def broken(request: Request) -> Answer:
    """500, which tells nothing; the log does."""
    body = b"internal error, see the log of the exporter\n"
    return answer(request, body, status=HTTPStatus.INTERNAL_SERVER_ERROR)


class Pages:
    """/metrics, /healthz, /readyz and a landing page.

    not_ready: the reason why the directory cannot be read, None when it can. landing: the page at /, as HTML.
    """

    def __init__(self, metrics: MetricsPage, not_ready: Callable[[], str | None], landing: Callable[[], bytes]) -> None:
        self._not_ready = not_ready
        self._routes: dict[str, Callable[[Request], Answer]] = {
            "/": lambda request: answer(request, landing(), HTML),
            "/metrics": metrics,
            "/healthz": lambda request: answer(request, b"ok\n"),
            "/readyz": self._readyz,
        }

    def takes_time(self, request: Request) -> bool:
        """Whether answering may wait for the directory; all else is answered at once, whatever hangs."""
        return request.path in ("/", "/metrics", "/readyz") and request.method in METHODS

    def __call__(self, request: Request) -> Answer:
        """The answer to a request; never raises."""
        route = self._routes.get(request.path or "/")
        if route is None:
            body = b"not found; there are / /metrics /healthz /readyz\n"
            return answer(request, body, status=HTTPStatus.NOT_FOUND)
        if request.method not in METHODS:
            return not_allowed(request)
        try:
            return route(request)
        except Exception:
            logger.exception("jobmetrics: error in %s", request.path)
            return broken(request)

    def _readyz(self, request: Request) -> Answer:
        reason = self._not_ready()
        if reason is None:
            return answer(request, b"ready\n")
        body = f"not ready: {reason}\n".encode("utf-8", "backslashreplace")
        return answer(request, body, status=HTTPStatus.SERVICE_UNAVAILABLE)
