"""Serves the exporter's pages over HTTP until it is told to end."""

from __future__ import annotations

import logging
import signal
import socket
import sys
from collections.abc import Iterable, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any

from waitress import wasyncore
from waitress.server import create_server
from waitress.task import ThreadedTaskDispatcher

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

THREADS = 4
CONNECTIONS = 200
IDLE_SECONDS = 60
MAX_HEADER_BYTES = 16 * 1024
MAX_BODY_BYTES = 1024  # nobody sends us one
LOOP_SECONDS = 0.25  # how long an end that was asked for may go unnoticed
LAST_REQUEST_SECONDS = 0.7  # what requests under way get at the end


class Stop:
    """SIGTERM and SIGINT: while starting they end the process at once, while serving they are noted.

    Both end it with exit code 0: being told to end is no failure of a service.
    """

    def __init__(self) -> None:
        self.asked = False
        self.serving = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002 - what signal passes
        self.asked = True
        if not self.serving:
            sys.exit(0)


def serve(application: WSGIApplication, sockets: Sequence[socket.socket], stop: Stop, *, ready: str) -> None:
    """Serve until `stop` is asked for. ready: printed on stderr when the first request would be answered."""
    logging.getLogger("waitress").setLevel(logging.ERROR)  # a full queue of requests is no news for an operator
    connections: dict[int, Any] = {}
    threads = ThreadedTaskDispatcher()
    threads.set_thread_count(THREADS)
    create_server(
        application,
        map=connections,
        _dispatcher=threads,
        sockets=list(sockets),
        connection_limit=CONNECTIONS,
        channel_timeout=IDLE_SECONDS,
        max_request_header_size=MAX_HEADER_BYTES,
        max_request_body_size=MAX_BODY_BYTES,
        ident="jobmetrics",
    )
    stop.serving = True
    print(ready, file=sys.stderr, flush=True)  # noqa: T201 - the line that tells where it serves
    while not stop.asked:
        wasyncore.loop(timeout=LOOP_SECONDS, use_poll=True, map=connections, count=1)
    _end(threads, connections)


def _end(threads: ThreadedTaskDispatcher, connections: dict[int, Any]) -> None:
    """Answer what is under way, then close everything. The threads are daemons: one that hangs holds up nothing."""
    _no_more(connections.values())
    threads.shutdown(timeout=LAST_REQUEST_SECONDS)
    wasyncore.loop(timeout=0, use_poll=True, map=connections, count=1)  # the last bytes go out
    wasyncore.close_all(connections)


def _no_more(channels: Iterable[Any]) -> None:
    for channel in channels:
        if getattr(channel, "accepting", False):
            channel.accepting = False
