"""Basic authentication for basic_auth_users. Password checks do not delay other scrapes or reveal user names.

If requests arrive faster than they can be checked, clients take turns, so that a client that guesses passwords delays
another client by at most one check. Within a client, credentials are checked in the order of their arrival. They keep
their place after a 503, so that a client that repeats its credentials, as Prometheus does, is served before later
guesses.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import ipaddress
import secrets
from collections import OrderedDict
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

import bcrypt
from starlette.authentication import AuthCredentials, AuthenticationBackend, AuthenticationError, SimpleUser
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.requests import HTTPConnection
from starlette.responses import PlainTextResponse, Response

from jobmetrics.exporter.web.background import Background

REMEMBERED = 128  # digests of correct credentials that are kept
_SIGNIFICANT = 72  # bytes of a password that bcrypt reads

WAITING = 8  # requests of one client that may wait
ALL_WAITING = 64  # requests of all clients together
PLACES = 16_384  # credentials that keep their place, the most recent ones; about 3 MB

_IPV6_CLIENT = 64  # bits of an IPv6 address that identify a client, which may use all of that network


class Passwords:
    """Checks credentials.

    bcrypt is slow on purpose, so correct credentials are kept, as keyed digests that are useless outside this process.
    Wrong credentials are not kept, so guesses use no memory. Each wrong check takes as long as the slowest hash, even
    if the user's hash is faster or the user does not exist.

    Args:
        users: bcrypt hashes by name.
    """

    def __init__(self, users: Mapping[str, bytes]) -> None:
        self._users = {name.encode(): stored for name, stored in users.items()}
        self._key = secrets.token_bytes(32)
        self._right: OrderedDict[bytes, None] = OrderedDict()
        costs = [_rounds(stored) for stored in users.values()]
        # These match no password. They are checked for unknown names and after faster hashes.
        self._decoys = {rounds: _some_hash(rounds) for rounds in range(min(costs), max(costs) + 1)}

    def known(self, credentials: tuple[bytes, bytes]) -> bool:
        """Whether these credentials were correct before. Returns at once."""
        proof = self.proof(credentials)
        if proof not in self._right:
            return False
        self._right.move_to_end(proof)
        return True

    def check(self, credentials: tuple[bytes, bytes]) -> bool:
        """Whether the credentials are correct. Takes as long as bcrypt; not thread-safe."""
        name, password = credentials
        stored = self._users.get(name)
        most = max(self._decoys)
        right = _is(password, stored or self._decoys[most])
        if not right or stored is None:
            for rounds in range(_rounds(stored), most) if stored else ():
                _is(password, self._decoys[rounds])  # each round doubles the time, so these add up to the difference
            return False
        self._right[self.proof(credentials)] = None
        if len(self._right) > REMEMBERED:
            self._right.popitem(last=False)
        return True

    def proof(self, credentials: tuple[bytes, bytes]) -> bytes:
        """Return a digest of credentials that is useless outside this process."""
        name, password = credentials
        parts = (name, self._users.get(name, b""), password)
        text = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
        return hmac.digest(self._key, text, hashlib.sha256)


def _rounds(stored: bytes) -> int:
    return int(stored[4:6])


def _is(password: bytes, stored: bytes) -> bool:
    try:
        return bcrypt.checkpw(password[:_SIGNIFICANT], stored)
    except ValueError:  # bcrypt rejects a byte of the password
        return False


def _some_hash(rounds: int) -> bytes:
    """Return a random string in the format of a bcrypt hash with these rounds, without the time to hash."""
    salt = bcrypt.gensalt(rounds)
    return salt + base64.b64encode(secrets.token_bytes(23)).replace(b"+", b".").rstrip(b"=")[:31]


def credentials(authorization: str) -> tuple[bytes, bytes] | None:
    """Return name and password of an Authorization header; None if the scheme is not Basic (RFC 7617)."""
    scheme, _, text = authorization.strip().partition(" ")
    if scheme.lower() != "basic":
        return None
    try:
        decoded = base64.b64decode(text.strip().encode("latin-1"), validate=True)
    except (binascii.Error, ValueError):
        return None
    name, colon, password = decoded.partition(b":")
    return (name, password) if colon else None


@dataclass(eq=False)
class _Waiting:
    place: int
    key: tuple[str, bytes]
    turn: asyncio.Future[bool] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Turns:
    """Lets one check run at a time. Belongs to one event loop."""

    def __init__(self) -> None:
        self._busy = False
        self._waiting: dict[str, list[_Waiting]] = {}  # by client, in the order of their turns
        self._places: OrderedDict[tuple[str, bytes], int] = OrderedDict()
        self._next_place = 0

    @asynccontextmanager
    async def turn(self, client: str, proof: bytes) -> AsyncIterator[bool]:
        """Wait for a turn. Yields False if too many requests wait, so that the client should retry later.

        Args:
            client: The client, from `client_of`.
            proof: The digest of its credentials.
        """
        one = self._queue(client, proof)
        try:
            has_turn = await one.turn
        except BaseException:
            self._leave(one)
            raise
        if not has_turn:
            yield False
            return
        try:
            yield True
        finally:
            self._places.pop(one.key, None)
            self._pass_on()

    def _queue(self, client: str, proof: bytes) -> _Waiting:
        key = client, proof
        place = self._places.setdefault(key, self._next_place)
        self._next_place += 1
        self._places.move_to_end(key)
        if len(self._places) > PLACES:
            self._places.popitem(last=False)
        one = _Waiting(place, key)
        self._waiting.setdefault(client, []).append(one)
        if not self._busy:
            self._pass_on()
        elif len(self._waiting[client]) > WAITING:
            self._send_back(client)
        elif sum(map(len, self._waiting.values())) > ALL_WAITING:
            self._send_back(max(self._waiting, key=lambda client: len(self._waiting[client])))
        return one

    def _send_back(self, client: str) -> None:
        """Refuse the client's request with the last place."""
        last = max(self._waiting[client], key=lambda one: one.place)
        self._remove(last)
        if not last.turn.done():
            last.turn.set_result(False)

    def _pass_on(self) -> None:
        self._busy = False
        while self._waiting and not self._busy:
            client, waiting = next(iter(self._waiting.items()))
            first = min(waiting, key=lambda one: one.place)
            self._remove(first)
            if client in self._waiting:  # the client's next turn comes after the others'
                self._waiting[client] = self._waiting.pop(client)
            if not first.turn.done():
                first.turn.set_result(True)
                self._busy = True

    def _remove(self, one: _Waiting) -> None:
        waiting = self._waiting[one.key[0]]
        waiting.remove(one)
        if not waiting:
            del self._waiting[one.key[0]]

    def _leave(self, one: _Waiting) -> None:
        """Remove a request that ended while it waited."""
        if one in self._waiting.get(one.key[0], ()):
            self._remove(one)
        elif one.turn.done() and not one.turn.cancelled() and one.turn.result():
            self._pass_on()


def client_of(host: str) -> str:
    """Return an IPv4 address unchanged, the network of an IPv6 address, and '' for anything else."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:  # the form of IPv4 addresses on a dual-stack socket
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((int(address), _IPV6_CLIENT), strict=False))


class _Refused(AuthenticationError):
    """The credentials are missing or wrong."""


class _Later(AuthenticationError):
    """Too many credentials wait for a check."""


class _Backend(AuthenticationBackend):
    """Checks credentials in a thread, one at a time, so that guesses use at most one processor."""

    def __init__(self, passwords: Passwords) -> None:
        self._passwords = passwords
        self._background = Background(1)
        self._turns = Turns()

    async def authenticate(self, conn: HTTPConnection) -> tuple[AuthCredentials, SimpleUser]:
        given = credentials(conn.headers.get("authorization", ""))
        if given is None:
            raise _Refused
        if not self._passwords.known(given) and not await self._check(conn, given):
            raise _Refused
        return AuthCredentials(), SimpleUser(given[0].decode("utf-8", "replace"))

    async def _check(self, conn: HTTPConnection, given: tuple[bytes, bytes]) -> bool:
        client = client_of(conn.client.host if conn.client else "")
        async with self._turns.turn(client, self._passwords.proof(given)) as has_turn:
            if not has_turn:
                raise _Later
            # Another request may have sent the same credentials in the meantime.
            return self._passwords.known(given) or await self._background.run(partial(self._passwords.check, given))


def _refuse(_: HTTPConnection, error: AuthenticationError) -> Response:
    nosniff = {"X-Content-Type-Options": "nosniff"}
    if isinstance(error, _Later):
        return PlainTextResponse("too many passwords to check, try again\n", 503, {"Retry-After": "5", **nosniff})
    realm = 'Basic realm="jobmetrics", charset="UTF-8"'
    return PlainTextResponse("unauthorized\n", 401, {"WWW-Authenticate": realm, **nosniff})


def authentication(users: Mapping[str, bytes]) -> Middleware:
    """Make the middleware that accepts requests with a correct password. users: bcrypt hashes by name."""
    return Middleware(AuthenticationMiddleware, backend=_Backend(Passwords(users)), on_error=_refuse)
