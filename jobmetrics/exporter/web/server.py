"""The server: uvicorn on sockets of our own, until a signal ends it."""

from __future__ import annotations

import asyncio
import errno
import logging
import math
import signal
import socket
import ssl
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import FrameType, SimpleNamespace
from typing import Any, cast

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from jobmetrics.errors import JobmetricsError, SettingsError

HEAD_SECONDS = 10.0  # from accept, or a further request's first byte, to the end of the headers; TLS included
ANSWER_SECONDS = 60.0  # from there to the end of the answer
KEEP_ALIVE_SECONDS = 75  # from there to the next request: Prometheus mostly comes once a minute or more often
LAST_REQUEST_SECONDS = 1  # for requests that are being answered when the server ends
MAX_HEAD_BYTES = 16 * 1024  # of a request's line and headers together

# asyncio sets 256 kB aside for each TLS connection, and OpenSSL its own: together they take some 110 MB.
CONNECTIONS = 320
FEWEST_CONNECTIONS = 8
DESCRIPTORS = 8192
RESERVED_DESCRIPTORS = 128  # for slots, brokers and what the process itself has open; the rest is for connections
# Also the number of connections that asyncio accepts at once, before those that make room are closed.
BACKLOG = 32

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

# What a machine without IPv6 reports for ::1, the other address of "localhost".
_NO_SUCH_ADDRESS = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT})


class Stop:
    """SIGTERM and SIGINT while starting: they end the process at once; `serve` handles them later.

    Both end it with exit code 0: it is no failure of a service to end when it is asked to.
    """

    def __init__(self) -> None:
        for number in _SIGNALS:
            signal.signal(number, self._handle)

    @staticmethod
    def _handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG004 - what signal passes
        sys.exit(0)


class Connection(H11Protocol):
    """uvicorn's protocol, with deadlines that a dripping client cannot put off, and a place that a newer one may take.

    The connection that has waited longest for its client makes room, so that a scrape always finds a place.
    """

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        accepting = cast("asyncio.Task[None]", asyncio.current_task())  # asyncio's own, until TLS is agreed on
        accepting.add_done_callback(self._accepted)
        self.transport = cast("asyncio.Transport", SimpleNamespace(abort=accepting.cancel, close=accepting.cancel))
        self.waiting_since = self.loop.time()  # infinite while a request is being answered
        self._deadline = self.loop.call_later(HEAD_SECONDS, self.cut)
        self.connections.add(self)
        if len(self.connections) >= (self.limit_concurrency or CONNECTIONS):
            min(cast("set[Connection]", self.connections), key=lambda each: each.waiting_since).cut()

    def _accepted(self, _: asyncio.Task[None]) -> None:
        if self.scheme is None:  # but it was not: uvicorn never hears of this connection
            self.cut()

    def cut(self) -> None:
        self._deadline.cancel()
        self.connections.discard(self)
        self.connections = set()  # asyncio may be about to call connection_made, which would add it once more
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._unset_keepalive_if_required()  # uvicorn leaves it after a reset, and with it all that TLS has buffered
        self._deadline.cancel()

    def data_received(self, data: bytes) -> None:
        if self.timeout_keep_alive_task is not None:  # another request begins
            self._expect(HEAD_SECONDS)
        self._step(super().data_received, data)

    def on_response_complete(self) -> None:
        self._expect(KEEP_ALIVE_SECONDS + HEAD_SECONDS)
        self._step(super().on_response_complete)

    def _step(self, step: Callable[..., None], *given: bytes) -> None:
        before = self.cycle
        step(*given)
        if self.cycle is not before:  # a request's headers are complete
            self._expect(ANSWER_SECONDS)
            self.waiting_since = math.inf

    def _expect(self, seconds: float) -> None:
        self._deadline.cancel()
        self._deadline = self.loop.call_later(seconds, self.cut)
        self.waiting_since = self.loop.time()


class Server(uvicorn.Server):
    """Calls `ready` when it accepts requests, and `ended` when it is about to end."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], object], ended: Callable[[], object]) -> None:
        super().__init__(config)
        self._ready = ready
        self._ended = ended

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._ended()
        logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # requests that it ends are no news
        await super().shutdown(sockets)


def serve(
    application: ASGIApp,
    sockets: Sequence[socket.socket],
    *,
    ready: Callable[[], object],
    ended: Callable[[], object] = lambda: None,
    tls: ssl.SSLContext | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        application: What answers requests.
        sockets: Listening sockets, which are closed at the end.
        ready: Called when requests are answered.
        ended: Called when a signal has come.
        tls: The context for TLS, None for plain HTTP.
    """
    for sock in sockets:
        # Inherited by each connection. Else an answer's body waits 40 ms for the client to acknowledge its headers:
        # asyncio sets this only on sockets that were made with the number of TCP.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    most = _raise_descriptor_limit() - RESERVED_DESCRIPTORS - 2 * BACKLOG
    # What strangers send is no news for an operator.
    logging.getLogger("uvicorn").setLevel(logging.ERROR)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    config = uvicorn.Config(
        application,
        http=Connection,
        loop="asyncio",
        ws="none",
        lifespan="off",
        interface="asgi3",
        workers=1,
        log_config=None,
        access_log=False,
        proxy_headers=False,
        server_header=False,
        backlog=BACKLOG,
        limit_concurrency=max(FEWEST_CONNECTIONS, min(CONNECTIONS, most)) + 1,
        h11_max_incomplete_event_size=MAX_HEAD_BYTES,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=LAST_REQUEST_SECONDS,
        ssl_context_factory=None if tls is None else lambda _config, _default: tls,
    )
    Server(config, ready, ended).run(list(sockets))


def _raise_descriptor_limit() -> int:
    """Raise the process's limit of descriptors, one for each connection and slot, as far as allowed; return it."""
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


def listen(address: str) -> list[socket.socket]:
    """Listen on 'HOST:PORT', '[V6]:PORT' or ':PORT' (all interfaces); one socket an address of the host.

    Port 0 takes a free one, the same for all.

    Raises:
        SettingsError: The host has no address.
        JobmetricsError: The address cannot be used now, for example because the port is in use.
    """
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host:
        return _all_interfaces(address, int(port))
    try:
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise SettingsError(f"cannot listen on {address}: {host!r} is no address of this machine") from None
    sockets: list[socket.socket] = []
    failure: OSError | None = None
    for family, _, _, _, place in dict.fromkeys(found):
        taken = sockets[0].getsockname()[1] if sockets else place[1]
        try:
            sockets.append(socket.create_server((place[0], taken, *place[2:]), family=family, backlog=BACKLOG))
        except OSError as error:
            failure = error
            if error.errno not in _NO_SUCH_ADDRESS:
                close(sockets)
                raise _refused(address, error) from None
    if not sockets:
        raise _refused(address, failure) from None
    return sockets


def _all_interfaces(address: str, port: int) -> list[socket.socket]:
    if socket.has_dualstack_ipv6():
        with suppress(OSError):  # IPv6 may be switched off; if the port is taken, IPv4 says so below
            return [socket.create_server(("::", port), family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=True)]
    try:
        return [socket.create_server(("", port), backlog=BACKLOG)]
    except OSError as error:
        raise _refused(address, error) from None


def _refused(address: str, error: OSError | None) -> JobmetricsError:
    if error is None:
        reason = "it has no address"
    elif error.errno == errno.EADDRINUSE:
        reason = "the port is in use"
    elif error.errno == errno.EACCES:
        reason = "this user may not use the port"
    elif error.errno in _NO_SUCH_ADDRESS:
        reason = "this machine has no such address"
    else:
        reason = error.strerror or str(error)
    return JobmetricsError(f"cannot listen on {address}: {reason}")


def close(sockets: list[socket.socket]) -> None:
    """Close them all."""
    for sock in sockets:
        sock.close()


def url(sock: socket.socket, scheme: str = "http") -> str:
    """Where a client on this machine finds the socket: 'SCHEME://HOST:PORT', with the real port.

    A socket of all interfaces is named by IPv4's loopback address if it takes IPv4: a host may have no ::1.
    """
    host, port = sock.getsockname()[:2]
    if host == "::" and not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
        host = "127.0.0.1"
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104 - read only
    return f"{scheme}://{host}:{port}"
