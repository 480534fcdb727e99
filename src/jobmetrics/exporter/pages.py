"""The exporter's pages as one WSGI application."""

from __future__ import annotations

import html
import logging
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING

from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import CollectorRegistry

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIEnvironment

logger = logging.getLogger("jobmetrics")

TEXT = "text/plain; charset=utf-8"
HTML = "text/html; charset=utf-8"
METHODS = ("GET", "HEAD")

_LANDING = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>jobmetrics</title></head>
<body>
<h1>jobmetrics {version}</h1>
<p>Metrics of Celery and RQ jobs, from <code>{directory}</code>.</p>
<ul>
<li><a href="metrics">metrics</a></li>
<li><a href="healthz">healthz</a>: this process answers</li>
<li><a href="readyz">readyz</a>: the registry directory can be read</li>
</ul>
</body>
</html>
"""


@dataclass(frozen=True, slots=True)
class Page:
    """One answer."""

    body: bytes
    content_type: str = TEXT
    status: HTTPStatus = HTTPStatus.OK


class Pages:
    """/metrics, /healthz, /readyz and a landing page.

    not_ready: the reason why the directory cannot be read, None when it can.
    """

    def __init__(
        self, registry: CollectorRegistry, not_ready: Callable[[], str | None], *, version: str, directory: str
    ) -> None:
        self._registry = registry
        self._not_ready = not_ready
        landing = _LANDING.format(version=html.escape(version), directory=html.escape(directory))
        self._landing = Page(landing.encode("utf-8", "backslashreplace"), HTML)
        self._routes: dict[str, Callable[[WSGIEnvironment], Page]] = {
            "/": lambda _: self._landing,
            "/metrics": self._metrics,
            "/healthz": lambda _: Page(b"ok\n"),
            "/readyz": self._readyz,
        }

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request; an error is a 500 and a log line, never a broken connection."""
        page = self._page(environ)
        headers = [
            ("Content-Type", page.content_type),
            ("Content-Length", str(len(page.body))),
            ("X-Content-Type-Options", "nosniff"),
        ]
        if page.status == HTTPStatus.METHOD_NOT_ALLOWED:
            headers.append(("Allow", ", ".join(METHODS)))
        start_response(f"{page.status.value} {page.status.phrase}", headers)
        return [] if environ["REQUEST_METHOD"] == "HEAD" else [page.body]

    def _page(self, environ: WSGIEnvironment) -> Page:
        route = self._routes.get(environ.get("PATH_INFO") or "/")
        if route is None:
            return Page(b"not found; there are / /metrics /healthz /readyz\n", status=HTTPStatus.NOT_FOUND)
        if environ["REQUEST_METHOD"] not in METHODS:
            return Page(b"only GET and HEAD\n", status=HTTPStatus.METHOD_NOT_ALLOWED)
        try:
            return route(environ)
        except Exception:
            logger.exception("jobmetrics: error in %s", environ.get("PATH_INFO"))
            return Page(b"internal error, see the log of the exporter\n", status=HTTPStatus.INTERNAL_SERVER_ERROR)

    def _metrics(self, environ: WSGIEnvironment) -> Page:
        try:
            encode, content_type = choose_encoder(environ.get("HTTP_ACCEPT", ""))
        except (TypeError, ValueError):  # a version that is none
            encode, content_type = choose_encoder("")
        return Page(encode(self._registry), content_type)

    def _readyz(self, _: WSGIEnvironment) -> Page:
        reason = self._not_ready()
        if reason is None:
            return Page(b"ready\n")
        body = f"not ready: {reason}\n".encode("utf-8", "backslashreplace")
        return Page(body, status=HTTPStatus.SERVICE_UNAVAILABLE)
