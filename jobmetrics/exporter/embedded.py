"""The metrics as an application for another web process, one that serves Django or FastAPI anyway."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING

from jobmetrics import settings
from jobmetrics.collector_api import CollectorOptions
from jobmetrics.exporter.app import Exporter, build
from jobmetrics.exporter.asgi import Application, asgi_app, in_threads
from jobmetrics.exporter.pages import Answer, Request
from jobmetrics.exporter.wsgi import wsgi_app

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication


class _PerProcess:
    """An exporter that starts with the first request, anew in each process that a server forks."""

    def __init__(self, given: settings.Settings, options: CollectorOptions) -> None:
        self._settings = given
        self._options = options
        self._lock = threading.Lock()
        self._exporter: Exporter | None = None
        build(given, options).close()  # what is wrong with the options shows now
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=self._forget)

    def _forget(self) -> None:
        """In a forked child: the threads are not here, and a lock may be held by one of them."""
        self._lock = threading.Lock()
        self._exporter = None

    def __call__(self, request: Request) -> Answer:
        exporter = self._exporter
        if exporter is None:
            with self._lock:
                exporter = self._exporter
                if exporter is None:
                    exporter = build(self._settings, self._options)
                    exporter.collectors.start()
                    self._exporter = exporter
        return exporter.metrics(request)


def _made(options: CollectorOptions | None, keywords: dict[str, object]) -> _PerProcess:
    return _PerProcess(settings.load(None, **keywords), options or CollectorOptions())


def make_wsgi_app(options: CollectorOptions | None = None, **keywords: object) -> WSGIApplication:
    """A WSGI application that answers with the metrics, under whatever path it is mounted.

    options: the brokers to read, none by default: one exporter should ask them, not each of many web processes.
    keywords: settings, such as dir, namespace and labels. Who may see it is up to what it is mounted in.

    Raises:
        SettingsError: for a setting or option that is wrong.
    """
    return wsgi_app(_made(options, keywords))


def make_asgi_app(options: CollectorOptions | None = None, **keywords: object) -> Application:
    """The same as an ASGI application (version 3). Raises SettingsError as make_wsgi_app does."""
    return asgi_app(in_threads(_made(options, keywords)))
