"""Serves the exporter's pages over HTTP until it is told to end."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import signal
import socket
import ssl
import sys
from asyncio import sslproto
from collections.abc import Callable, Sequence
from dataclasses import replace
from types import FrameType

import uvicorn
from uvicorn.server import ServerState

from jobmetrics.exporter.accepting import Acceptor
from jobmetrics.exporter.asgi import Application
from jobmetrics.exporter.connection import MAX_HEAD_BYTES, Allow, Connection, Held, Limits

_M_ARENA_MAX = -8  # mallopt(3)
DESCRIPTORS = 8192
RESERVED_DESCRIPTORS = 128  # for slots, brokers and what the process itself has open; the rest is for connections
FEWEST_CONNECTIONS = 8
TLS_BUFFER_BYTES = 16 * 1024
LAST_REQUEST_SECONDS = 0.7  # what requests under way get at the end
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stop:
    """SIGTERM and SIGINT while starting: they end the process at once; `serve` takes them over.

    Both end it with exit code 0: being told to end is no failure of a service.
    """

    def __init__(self) -> None:
        for number in _SIGNALS:
            signal.signal(number, self._handle)

    @staticmethod
    def _handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG004 - what signal passes
        sys.exit(0)


def serve(
    application: Application,
    sockets: Sequence[socket.socket],
    *,
    ready: Callable[[], object],
    ended: Callable[[], object] = lambda: None,
    tls: Callable[[], ssl.SSLContext] | None = None,
    allow: Allow | None = None,
    limits: Limits = Limits(),  # noqa: B008 - frozen
) -> None:
    """Serve until SIGTERM or SIGINT.

    ready: called when the first request would be answered. ended: called when it is told to end.
    tls: the context in force, None for plain HTTP. allow: whether a client with this certificate may talk to us.
    """
    _use_one_heap()
    descriptors = _raise_descriptor_limit()
    _shrink_tls_buffers()
    most = max(FEWEST_CONNECTIONS, min(limits.connections, descriptors - RESERVED_DESCRIPTORS))
    asyncio.run(_serve(application, sockets, ready, ended, tls, allow, replace(limits, connections=most)))


def _use_one_heap() -> None:
    """Keep glibc from giving each thread a heap of its own: here one works at a time, and it saves 4 to 5 MB."""
    try:
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
    except (AttributeError, OSError, TypeError):
        pass  # another C library


def _raise_descriptor_limit() -> int:
    """Let the process have as many descriptors as it may, one a connection and one a slot; how many that is."""
    try:
        import resource  # not on Windows
    except ImportError:
        return DESCRIPTORS
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = DESCRIPTORS if hard == resource.RLIM_INFINITY else min(DESCRIPTORS, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    except (OSError, ValueError):
        return DESCRIPTORS if soft == resource.RLIM_INFINITY else soft
    return wanted


def _shrink_tls_buffers() -> None:
    """Give each TLS connection a buffer for a request instead of one for an upload.

    asyncio sets 256 KB aside for each, touched at once, and has no parameter for it: 600 clients that only hold on
    would take 150 MB. The attribute is the same in Python 3.10 to 3.14; without it, only memory is lost.
    """
    if hasattr(sslproto.SSLProtocol, "max_size"):
        sslproto.SSLProtocol.max_size = TLS_BUFFER_BYTES


async def _serve(
    application: Application,
    sockets: Sequence[socket.socket],
    ready: Callable[[], object],
    ended: Callable[[], object],
    tls: Callable[[], ssl.SSLContext] | None,
    allow: Allow | None,
    limits: Limits,
) -> None:
    loop = asyncio.get_running_loop()
    asked = asyncio.Event()
    for number in _SIGNALS:
        loop.add_signal_handler(number, asked.set)
    # What strangers send is no news for an operator.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    config = uvicorn.Config(
        application,
        http=Connection,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        timeout_keep_alive=int(limits.idle),
    )
    config.load()
    state = ServerState()

    def make(held: Held) -> Connection:
        return Connection(config, state, held, limits, allow)

    acceptor = Acceptor(make, limits, tls)
    acceptor.start(sockets)
    ready()
    await asked.wait()
    ended()
    await acceptor.end(LAST_REQUEST_SECONDS)
