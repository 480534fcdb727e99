"""One HTTP connection: uvicorn's protocol, with a limit to how long each part of an exchange may take."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

MAX_HEAD_BYTES = 16 * 1024  # of a request's line and headers together

Allow = Callable[[Mapping[str, Any]], bool]


@dataclass(frozen=True, slots=True)
class Limits:
    """connections: held at once. The rest are seconds, from one event to the other, whatever comes in between.

    handshake: TLS, from accept to its end. head: from there to the end of the first request's headers.
    answer: from there until the client has taken the answer. idle: from there to the next request's.
    """

    connections: int = 640
    handshake: float = 5.0
    head: float = 10.0
    answer: float = 60.0
    idle: float = 75.0  # Prometheus mostly comes once a minute or more often


class Held:
    """A connection that is held, from accept to its very end. moved, ended: who wants to know.

    waiting: whether it is for the client to do something; such a one may be closed for a newer one's sake.
    """

    def __init__(self, moved: Callable[[Held], None], ended: Callable[[Held], None]) -> None:
        self.waiting = True
        self.task: asyncio.Task[None] | None = None  # until the handshake is done
        self.protocol: Connection | None = None  # from there on
        self._moved = moved
        self._ended = ended

    def wait_for_client(self, waiting: bool) -> None:
        """Whose turn it is has changed."""
        self.waiting = waiting
        self._moved(self)

    def end(self) -> None:
        """It has ended."""
        self._ended(self)

    def close(self) -> None:
        """Close it now, whatever is under way."""
        if self.protocol is not None:
            self.protocol.transport.abort()
        elif self.task is not None:
            self.task.cancel()


class Connection(H11Protocol):
    """Closes the connection when the client takes too long.

    uvicorn's own timer ends when the next byte comes; a client that sends one a second would hold its
    connection for ever. allow: whether the client with this certificate may talk to us.
    """

    def __init__(
        self, config: uvicorn.Config, state: ServerState, held: Held, limits: Limits, allow: Allow | None = None
    ) -> None:
        super().__init__(config=config, server_state=state, app_state={})
        self._held = held
        self._limits = limits
        self._allow = allow
        self._deadline: asyncio.TimerHandle | None = None
        self._refused = False

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # uvicorn's own narrowing
        super().connection_made(transport)
        self._held.protocol = self
        if self._allow is not None and not self._allow(transport.get_extra_info("peercert") or {}):
            self._refused = True
            transport.abort()
            return
        self._expect(self._limits.head)

    def connection_lost(self, exc: Exception | None) -> None:
        self._expect(None)
        self._held.end()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before and not self.cycle.response_complete:
            self._held.wait_for_client(False)
            self._expect(self._limits.answer)

    def on_response_complete(self) -> None:
        self._held.wait_for_client(True)
        self._expect(self._limits.idle)
        before = self.cycle
        super().on_response_complete()  # goes on with a request that has come meanwhile
        if self.cycle is not before:
            self._held.wait_for_client(False)
            self._expect(self._limits.answer)

    def _expect(self, seconds: float | None) -> None:
        """What is expected next has to happen within so many seconds."""
        if self._deadline is not None:
            self._deadline.cancel()
        self._deadline = None if seconds is None else self.loop.call_later(seconds, self.transport.abort)
