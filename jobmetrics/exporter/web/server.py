"""The server: uvicorn on given sockets, until a signal ends it."""

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

HEAD_SECONDS = 10.0  # from accept, or the first byte of a further request, to the end of the headers; includes TLS
ANSWER_SECONDS = 60.0  # from the end of the headers to the end of the answer
KEEP_ALIVE_SECONDS = 75  # between two requests; Prometheus usually scrapes at least once a minute
LAST_REQUEST_SECONDS = 1  # for requests in progress when the server ends
MAX_HEAD_BYTES = 16 * 1024  # of a request line and its headers

# asyncio allocates 256 kB for each TLS connection, and OpenSSL adds its buffers: about 110 MB for all connections.
CONNECTIONS = 320
FEWEST_CONNECTIONS = 8
DESCRIPTORS = 8192
RESERVED_DESCRIPTORS = 128  # for slots, brokers and the process's own files; connections may use the rest
# asyncio also accepts this many connections at once, before it closes those that make room.
BACKLOG = 32

_SIGNALS = (signal.SIGTERM, signal.SIGINT)

# Errors of a machine without IPv6 for ::1, which "localhost" also resolves to.
_NO_SUCH_ADDRESS = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT})


class Stop:
    """Ends the process at once on SIGTERM and SIGINT while it starts. `serve` handles them later.

    The exit code is 0, because a service that ends on request has not failed.
    """

    def __init__(self) -> None:
        for number in _SIGNALS:
            signal.signal(number, self._handle)

    @staticmethod
    def _handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG004 - signal passes them
        sys.exit(0)


class Connection(H11Protocol):
    """uvicorn's protocol, with deadlines that a slow client cannot extend and a limit that never refuses a scrape.

    At the limit, the connection that has waited longest for its client is closed to make room for a new one.
    """

    def __init__(self, *given: Any, **options: Any) -> None:
        super().__init__(*given, **options)
        accepting = cast("asyncio.Task[None]", asyncio.current_task())  # asyncio's; it ends after the handshake
        accepting.add_done_callback(self._accepted)
        self.transport = cast("asyncio.Transport", SimpleNamespace(abort=accepting.cancel, close=accepting.cancel))
        self.waiting_since = self.loop.time()  # infinite while a request is being answered
        self._deadline = self.loop.call_later(HEAD_SECONDS, self.cut)
        self.connections.add(self)
        if len(self.connections) >= (self.limit_concurrency or CONNECTIONS):
            min(cast("set[Connection]", self.connections), key=lambda each: each.waiting_since).cut()

    def _accepted(self, _: asyncio.Task[None]) -> None:
        if self.scheme is None:  # the handshake failed, and connection_made was not called
            self.cut()

    def cut(self) -> None:
        self._deadline.cancel()
        self.connections.discard(self)
        self.connections = set()  # asyncio may still call connection_made, which would add the connection again
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 - a reset is an end like others
        super().connection_lost(None)  # after a reset, uvicorn would keep its timer, and with it the TLS buffers
        self._deadline.cancel()

    def data_received(self, data: bytes) -> None:
        if self.timeout_keep_alive_task is not None:  # a further request begins
            self._expect(HEAD_SECONDS)
        super().data_received(data)

    def _should_upgrade(self) -> bool:  # uvicorn asks when a request's headers are complete
        self._expect(ANSWER_SECONDS, of_client=False)
        return False

    def send_400_response(self, msg: str) -> None:
        if self.cycle is not None:
            self.cycle.disconnected = True  # its answer would come second: h11 raises, and uvicorn logs a traceback
        super().send_400_response(msg)

    def on_response_complete(self) -> None:
        self._expect(KEEP_ALIVE_SECONDS + HEAD_SECONDS)
        super().on_response_complete()

    def _expect(self, seconds: float, *, of_client: bool = True) -> None:
        self._deadline.cancel()
        self._deadline = self.loop.call_later(seconds, self.cut)
        self.waiting_since = self.loop.time() if of_client else math.inf


class Server(uvicorn.Server):
    """Calls `ready` when it accepts requests, and `ended` when it begins to shut down."""

    def __init__(self, config: uvicorn.Config, ready: Callable[[], object], ended: Callable[[], object]) -> None:
        super().__init__(config)
        self._ready = ready
        self._ended = ended

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._ended()
        logging.getLogger("uvicorn").setLevel(logging.CRITICAL)  # it would log each request that the shutdown ends
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
        application: The application.
        sockets: Listening sockets. They are closed at the end.
        ready: Called when the server accepts requests.
        ended: Called after a signal, when the server begins to shut down.
        tls: The context for TLS; None for plain HTTP.
    """
    for sock in sockets:
        # Connections inherit it. Without it, the body waits 40 ms until the client acknowledges the headers.
        # asyncio sets it only on sockets that were created with the protocol number of TCP.
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    most = _raise_descriptor_limit() - RESERVED_DESCRIPTORS - 2 * BACKLOG
    # An operator does not need log messages about invalid requests of strangers.
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
    """Raise the limit of file descriptors as far as needed and allowed, and return it."""
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
    """Listen on 'HOST:PORT', '[V6]:PORT' or ':PORT' (all interfaces).

    Port 0 takes a free port, the same for all sockets.

    Returns:
        One socket for each address of the host.

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
        raise SettingsError(f"cannot listen on {address}: {host!r} is not an address of this machine") from None
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
        with suppress(OSError):  # IPv6 may be disabled; if the port is in use, IPv4 fails below
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
    """Close the sockets."""
    for sock in sockets:
        sock.close()


def url(sock: socket.socket, scheme: str = "http") -> str:
    """Return the URL 'SCHEME://HOST:PORT' of a socket for clients on this machine, with the real port.

    A socket on all interfaces gets the IPv4 loopback address if it accepts IPv4, because a host may have no ::1.
    """
    host, port = sock.getsockname()[:2]
    if host == "::" and not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
        host = "127.0.0.1"
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104 - read only
    return f"{scheme}://{host}:{port}"
