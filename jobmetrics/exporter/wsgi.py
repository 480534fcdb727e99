"""The exporter's answers as a WSGI application (PEP 3333)."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from jobmetrics.exporter.pages import Answer, Request

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment


def wsgi_app(respond: Callable[[Request], Answer]) -> WSGIApplication:
    """An application that answers every request with `respond`."""

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        request = Request(
            environ["REQUEST_METHOD"],
            environ.get("PATH_INFO") or "/",
            environ.get("HTTP_ACCEPT", ""),
            environ.get("HTTP_ACCEPT_ENCODING", ""),
        )
        answer = respond(request)
        start_response(f"{answer.status.value} {answer.status.phrase}", answer.headers)
        return [answer.body] if answer.body else []

    return application
