"""The exporter's answers as an ASGI application (version 3)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from jobmetrics.exporter.background import Background
from jobmetrics.exporter.pages import Answer, Request

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]
Respond = Callable[[Request], Awaitable[Answer]]

THREADS = 2  # one at work, one whose client has asked for another format meanwhile


def in_threads(respond: Callable[[Request], Answer], takes_time: Callable[[Request], bool] = lambda _: True) -> Respond:
    """`respond` for an event loop: what takes time goes to threads."""
    background = Background(THREADS)

    async def responding(request: Request) -> Answer:
        if not takes_time(request):
            return respond(request)
        return await background.run(lambda: respond(request))

    return responding


def asgi_app(respond: Respond) -> Application:
    """An application that answers every HTTP request with `respond`, and knows the lifespan protocol."""

    async def application(scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await _lifespan(receive, send)
        elif scope["type"] == "http":
            await deliver(await respond(request_of(scope)), send)

    return application


def request_of(scope: Message) -> Request:
    """The request of an HTTP scope."""
    return Request(scope["method"], scope["path"] or "/", header(scope, b"accept"), header(scope, b"accept-encoding"))


def header(scope: Message, name: bytes) -> str:
    """A header's value, several joined with commas as RFC 9110 says; empty when there is none."""
    return ",".join(value.decode("latin-1") for key, value in scope["headers"] if key == name)


async def deliver(answer: Answer, send: Send) -> None:
    """Send an answer."""
    headers = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in answer.headers]
    await send({"type": "http.response.start", "status": answer.status.value, "headers": headers})
    await send({"type": "http.response.body", "body": answer.body})


async def _lifespan(receive: Receive, send: Send) -> None:
    while True:
        message = await receive()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return
