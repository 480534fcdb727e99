"""Lets requests through to the application when their password is right, and adds the headers that were asked for."""

from __future__ import annotations

from collections.abc import Sequence
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING

from jobmetrics.exporter.asgi import Application, Message, Receive, Send, deliver, header, request_of
from jobmetrics.exporter.background import Background
from jobmetrics.exporter.pages import Answer, answer
from jobmetrics.exporter.turns import Turns, client_of

if TYPE_CHECKING:
    from jobmetrics.exporter.passwords import Passwords

_REALM = 'Basic realm="jobmetrics", charset="UTF-8"'


def with_headers(application: Application, headers: Sequence[tuple[str, str]]) -> Application:
    """The application, with a date and these headers in each answer; one it sets itself gives way."""
    fixed = [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in headers]
    ours = {name for name, _ in fixed}

    async def wrapped(scope: Message, receive: Receive, send: Send) -> None:
        async def sending(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [pair for pair in message["headers"] if pair[0] not in ours]
                date = formatdate(usegmt=True).encode("ascii")
                message = {**message, "headers": [(b"date", date), *kept, *fixed]}
            await send(message)

        await application(scope, receive, sending)

    return wrapped


def with_passwords(application: Application, passwords: Passwords) -> Application:
    """The application, for those who know a password.

    Checks run one after another in a thread, and clients take turns: strangers who guess can neither keep the
    processors busy nor keep out those who know a password.
    """
    from jobmetrics.exporter.passwords import credentials  # bcrypt is for those who use it

    background = Background(1)
    turns = Turns()

    async def wrapped(scope: Message, receive: Receive, send: Send) -> None:
        given = credentials(header(scope, b"authorization"))
        if given is None:
            await deliver(_refused(scope), send)
            return
        if not passwords.known(given):
            async with turns.turn(client_of((scope.get("client") or ("",))[0]), passwords.proof(given)) as has_turn:
                if not has_turn:
                    await deliver(_later(scope), send)
                    return
                # Another request may have brought the same meanwhile.
                right = passwords.known(given) or await background.run(lambda: passwords.check(given))
            if not right:
                await deliver(_refused(scope), send)
                return
        await application(scope, receive, send)

    return wrapped


def _refused(scope: Message) -> Answer:
    more = [("WWW-Authenticate", _REALM)]
    return answer(request_of(scope), b"unauthorized\n", status=HTTPStatus.UNAUTHORIZED, more=more)


def _later(scope: Message) -> Answer:
    body = b"too many passwords to check, try again\n"
    return answer(request_of(scope), body, status=HTTPStatus.SERVICE_UNAVAILABLE, more=[("Retry-After", "5")])
