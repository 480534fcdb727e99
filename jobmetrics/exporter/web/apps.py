"""The pages as ASGI and WSGI applications, for the exporter and for other web processes such as Django or FastAPI."""

from __future__ import annotations

import os
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING

from jobmetrics import __version__, settings
from jobmetrics.collector_api import CollectorOptions
from jobmetrics.exporter.app import Exporter, build
from jobmetrics.exporter.web import pages
from jobmetrics.exporter.web.background import Background
from jobmetrics.exporter.web.pages import Answer, Request

# Starlette is imported in functions because a WSGI application does not need it.
if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.requests import Request as HttpRequest
    from starlette.responses import Response
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

THREADS = 2  # one for the current request, and one for a second client

Page = Callable[[Request], Answer]


def site(exporter: Exporter, middleware: Sequence[Middleware] = ()) -> Starlette:
    """Make the exporter's application: /metrics, /healthz, /readyz and a landing page.

    Args:
        exporter: The exporter.
        middleware: Middleware for all requests, the outermost first.
    """
    from starlette.applications import Starlette
    from starlette.routing import Route

    background = Background(THREADS)

    def landing(request: Request) -> Answer:
        directory = exporter.directory
        shown = pages.landing(__version__, directory.path, directory.read(), exporter.collectors.states())
        return pages.answer(request, shown, pages.HTML)

    def readyz(request: Request) -> Answer:
        return pages.readyz(request, exporter.directory.read().reason)

    def in_thread(page: Page) -> Callable[[HttpRequest], Awaitable[Response]]:
        async def endpoint(request: HttpRequest) -> Response:
            return _response(await background.run(partial(pages.guarded, page, _request(request))))

        return endpoint

    def at_once(page: Page) -> Callable[..., Awaitable[Response]]:
        """Answer in the event loop, even while the file system of the registry directory hangs."""

        async def endpoint(request: HttpRequest, _: Exception | None = None) -> Response:
            return _response(page(_request(request)))

        return endpoint

    made = Starlette(
        routes=[
            Route("/", in_thread(landing)),
            Route("/metrics", in_thread(_metrics(exporter))),
            Route("/healthz", at_once(pages.healthz)),
            Route("/readyz", in_thread(readyz)),
        ],
        middleware=middleware,
        exception_handlers={404: at_once(pages.not_found), 405: at_once(pages.not_allowed)},
    )
    made.router.redirect_slashes = False
    return made


def _metrics(exporter: Exporter) -> Page:
    return partial(pages.metrics, exporter.metrics, pages.fingerprint(exporter.directory.path))


class AddHeaders:
    """Adds headers to each answer, and replaces the answer's headers with the same names."""

    def __init__(self, app: ASGIApp, headers: Mapping[str, str]) -> None:
        self._app = app
        self._headers = headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        from starlette.datastructures import MutableHeaders

        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._headers)
            await send(message)

        await self._app(scope, receive, sending)


def _request(request: HttpRequest) -> Request:
    accept, encoding = (",".join(request.headers.getlist(name)) for name in ("accept", "accept-encoding"))
    return Request(request.method, request.scope["path"] or "/", accept, encoding)


def _response(answer: Answer) -> Response:
    from starlette.responses import Response

    return Response(answer.body, answer.status, answer.headers)


def asgi_app(page: Page) -> ASGIApp:
    """Make an ASGI application that answers each request with the page, under any path."""
    from starlette.requests import Request as HttpRequest
    from starlette.routing import Router

    background = Background(THREADS)

    async def application(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            request = _request(HttpRequest(scope))
            await _response(await background.run(partial(pages.guarded, page, request)))(scope, receive, send)

    return Router(default=application)  # Router handles the lifespan protocol


def wsgi_app(page: Page) -> WSGIApplication:
    """Make a WSGI application that answers each request with the page, under any path."""

    def application(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        request = Request(
            environ["REQUEST_METHOD"],
            environ.get("PATH_INFO") or "/",
            environ.get("HTTP_ACCEPT", ""),
            environ.get("HTTP_ACCEPT_ENCODING", ""),
        )
        answer = pages.guarded(page, request)
        start_response(f"{answer.status.value} {answer.status.phrase}", list(answer.headers.items()))
        return [answer.body] if answer.body else []

    return application


class _PerProcess:
    """An exporter that starts with the first request of each process, also in processes that a server forks."""

    def __init__(self, given: settings.Settings, options: CollectorOptions) -> None:
        self._settings = given
        self._options = options
        self._lock = threading.Lock()
        self._page: Page | None = None
        build(given, options).close()  # so that wrong options raise at the start, not at the first request
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        """Reset in a forked child: it has no threads, and one of its parent's may have held the lock."""
        self._lock = threading.Lock()
        self._page = None

    def __call__(self, request: Request) -> Answer:
        page = self._page
        if page is None:
            with self._lock:
                page = self._page
                if page is None:
                    exporter = build(self._settings, self._options)
                    exporter.collectors.start()
                    self._page = page = _metrics(exporter)
        return page(request)


def _made(options: CollectorOptions | None, keywords: dict[str, object]) -> _PerProcess:
    return _PerProcess(settings.load(None, **keywords), options or CollectorOptions())


def make_wsgi_app(options: CollectorOptions | None = None, **keywords: object) -> WSGIApplication:
    """Make a WSGI application that answers with the metrics, under any mount path.

    The application that mounts it controls the access to the metrics.

    Args:
        options: The brokers to read, none by default. One exporter should read them instead of many web processes.
        keywords: Settings by name, such as dir, namespace and labels.

    Returns:
        The application. Each process reads the directory from its first request on.

    Raises:
        SettingsError: A setting or option is wrong.

    Example:
        >>> from jobmetrics.exporter import make_wsgi_app
        >>> application = make_wsgi_app(namespace="shop")
    """
    return wsgi_app(_made(options, keywords))


def make_asgi_app(options: CollectorOptions | None = None, **keywords: object) -> ASGIApp:
    """Make an ASGI application (version 3) that answers with the metrics, under any mount path.

    Args:
        options: The brokers to read, none by default. One exporter should read them instead of many web processes.
        keywords: Settings by name, such as dir, namespace and labels.

    Returns:
        The application. Each process reads the directory from its first request on.

    Raises:
        SettingsError: A setting or option is wrong.

    Example:
        >>> from starlette.applications import Starlette
        >>> from starlette.routing import Mount
        >>> from jobmetrics.exporter import make_asgi_app
        >>> app = Starlette(routes=[Mount("/metrics", make_asgi_app())])
    """
    return asgi_app(_made(options, keywords))
