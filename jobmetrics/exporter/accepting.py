"""Takes connections in: never more than a few, and a client that is slow about it never holds up another one."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import socket
import ssl
import sys
from collections.abc import Callable, Sequence
from typing import Any

from jobmetrics.exporter.connection import Connection, Held, Limits

_OUT_OF_FILES = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM})
_PAUSE = 0.1  # seconds, when the system has no more descriptors
_GOODBYE = 1.0  # seconds a client gets for the end of TLS

# asyncio's TLS consists of objects that refer to each other: without a collection now and then, connections that are
# long gone would fill the memory.
_ENDS_A_COLLECTION = 32


class Acceptor:
    """Accepts on some sockets. make: the protocol of a connection. tls: the context in force, None for plain HTTP.

    The handshake is a task of each connection's own, so that accepting goes on whatever it does. When all
    places are taken, the connection that has been waiting for its client the longest makes room: a scrape, whose
    request comes at once, finds a place while any number of slow clients come back again and again.
    """

    def __init__(
        self, make: Callable[[Held], Connection], limits: Limits, tls: Callable[[], ssl.SSLContext] | None = None
    ) -> None:
        self._make = make
        self._limits = limits
        self._tls = tls
        self._held: dict[Held, None] = {}  # in the order in which their present state began
        self._none_left = asyncio.Event()
        self._ends = 0
        self._tasks: list[asyncio.Task[None]] = []

    def start(self, sockets: Sequence[socket.socket]) -> None:
        """Begin to accept; the sockets stay the caller's."""
        gc.freeze()  # what is here by now stays: collections need not look at it
        for sock in sockets:
            sock.setblocking(False)
            self._tasks.append(asyncio.create_task(self._accept(sock)))

    async def end(self, seconds: float) -> None:
        """Accept no more, close what waits for its client, and what is being answered after so many seconds."""
        for task in self._tasks:
            task.cancel()
        for held in list(self._held):
            if held.protocol is not None and not held.waiting:
                held.protocol.shutdown()  # after this answer
            else:
                held.close()
        self._none_left.clear()
        if self._held:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._none_left.wait(), seconds)
        for held in list(self._held):
            held.close()

    async def _accept(self, listening: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(listening)
            except OSError as error:
                if error.errno in _OUT_OF_FILES:
                    self._make_room()
                    await asyncio.sleep(_PAUSE)
                continue
            if len(self._held) >= self._limits.connections:
                if not self._make_room():
                    sock.close()
                    continue
                await asyncio.sleep(0)  # which closes the one that made room: a burst takes no descriptor more
            held = Held(self._moved, self._forget)
            self._held[held] = None
            held.task = asyncio.create_task(self._connect(sock, held))

    def _make_room(self) -> bool:
        """Close the one that has been waiting longest; False when all are being answered."""
        held = next((held for held in self._held if held.waiting), None)
        if held is None:
            return False
        self._forget(held)  # its place is free now, whatever its end takes
        held.close()
        return True

    async def _connect(self, sock: socket.socket, held: Held) -> None:
        protocol = self._make(held)
        options: dict[str, Any] = {}
        if self._tls is not None:
            options = {"ssl": self._tls(), "ssl_handshake_timeout": self._limits.handshake}
            if sys.version_info >= (3, 11):
                options["ssl_shutdown_timeout"] = _GOODBYE
        try:
            with contextlib.suppress(OSError):  # not TCP, then
                # Else the second part of each answer waits 40 ms for the client to acknowledge the first one.
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with contextlib.suppress(OSError):  # the client's affair: it went away, or speaks no TLS we know
                await asyncio.get_running_loop().connect_accepted_socket(lambda: protocol, sock, **options)
        finally:
            held.task = None
            if held.protocol is None:
                sock.close()
                self._forget(held)

    def _moved(self, held: Held) -> None:
        if held in self._held:
            del self._held[held]
            self._held[held] = None  # now the last one

    def _forget(self, held: Held) -> None:
        self._held.pop(held, None)
        self._ends += 1
        if self._tls is not None and self._ends % _ENDS_A_COLLECTION == 0:
            gc.collect()
        if not self._held:
            self._none_left.set()
