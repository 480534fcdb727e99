"""basic_auth_users: names and bcrypt hashes, checked so that scrapes stay fast and strangers learn nothing.

When more requests come than can be checked, clients take turns, so that one that guesses delays another one by no
more than one check. Within a client, credentials that came first are checked first. A place is kept when the client
gets 503: a client that repeats its credentials, as Prometheus does, is served before any number of later guesses.
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

REMEMBERED = 128  # proofs of passwords that were right
_SIGNIFICANT = 72  # bytes of a password that bcrypt looks at

WAITING = 8  # requests of one client that may wait
ALL_WAITING = 64  # requests of all clients together
PLACES = 16_384  # credentials whose place is kept, the latest asked about; some 3 MB

_IPV6_CLIENT = 64  # bits of an IPv6 address that tell clients apart: each has the rest to itself


class Passwords:
    """Checks credentials. users: bcrypt hashes by name.

    bcrypt is slow on purpose, so what was right is remembered, as a keyed digest that is worth nothing outside
    this process. Wrong credentials are never remembered, so guesses cannot fill the memory. Each wrong one costs as
    much as the costliest hash, also if its own hash is cheaper or its name does not exist.
    """

    def __init__(self, users: Mapping[str, bytes]) -> None:
        self._users = {name.encode(): stored for name, stored in users.items()}
        self._key = secrets.token_bytes(32)
        self._right: OrderedDict[bytes, None] = OrderedDict()
        costs = [_rounds(stored) for stored in users.values()]
        # Matches no password: checked for names that do not exist, and to make up for a cheaper hash.
        self._nobody = {rounds: _some_hash(rounds) for rounds in range(min(costs), max(costs) + 1)}

    def known(self, credentials: tuple[bytes, bytes]) -> bool:
        """Whether these were right before; at once."""
        proof = self.proof(credentials)
        if proof not in self._right:
            return False
        self._right.move_to_end(proof)
        return True

    def check(self, credentials: tuple[bytes, bytes]) -> bool:
        """Whether they are right. Takes as long as bcrypt takes; may run in a thread, one at a time."""
        name, password = credentials
        stored = self._users.get(name)
        most = max(self._nobody)
        right = _is(password, stored or self._nobody[most])
        if not right or stored is None:
            for rounds in range(_rounds(stored), most) if stored else ():
                _is(password, self._nobody[rounds])  # each round doubles: together what is missing to the most
            return False
        self._right[self.proof(credentials)] = None
        if len(self._right) > REMEMBERED:
            self._right.popitem(last=False)
        return True

    def proof(self, credentials: tuple[bytes, bytes]) -> bytes:
        """A digest of credentials that is worth nothing outside this process."""
        name, password = credentials
        parts = (name, self._users.get(name, b""), password)
        text = b"".join(len(part).to_bytes(8, "big") + part for part in parts)
        return hmac.digest(self._key, text, hashlib.sha256)


def _rounds(stored: bytes) -> int:
    return int(stored[4:6])


def _is(password: bytes, stored: bytes) -> bool:
    try:
        return bcrypt.checkpw(password[:_SIGNIFICANT], stored)
    except ValueError:  # a byte that bcrypt does not take
        return False


def _some_hash(rounds: int) -> bytes:
    """A hash of these rounds that nothing was hashed to: made without the time that hashing takes."""
    salt = bcrypt.gensalt(rounds)
    return salt + base64.b64encode(secrets.token_bytes(23)).replace(b"+", b".").rstrip(b"=")[:31]


def credentials(authorization: str) -> tuple[bytes, bytes] | None:
    """Name and password of an Authorization header, None when it is no Basic one (RFC 7617)."""
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
    """One check at a time. Belongs to one event loop."""

    def __init__(self) -> None:
        self._busy = False
        self._waiting: dict[str, list[_Waiting]] = {}  # by client; the one that is next comes first
        self._places: OrderedDict[tuple[str, bytes], int] = OrderedDict()
        self._next_place = 0

    @asynccontextmanager
    async def turn(self, client: str, proof: bytes) -> AsyncIterator[bool]:
        """Wait for a turn. False: there is none now, the client shall come back."""
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
        """The one of this client that came last makes room."""
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
            if client in self._waiting:  # its next turn is after the others'
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
        """The request ended while it waited."""
        if one in self._waiting.get(one.key[0], ()):
            self._remove(one)
        elif one.turn.done() and not one.turn.cancelled() and one.turn.result():
            self._pass_on()


def client_of(host: str) -> str:
    """The client of an address: an IPv4 address, or the network of an IPv6 address; '' if it is not an address."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(address, ipaddress.IPv4Address):
        return str(address)
    if address.ipv4_mapped is not None:  # a socket for both versions shows IPv4 so
        return str(address.ipv4_mapped)
    return str(ipaddress.ip_network((int(address), _IPV6_CLIENT), strict=False))


class _Refused(AuthenticationError):
    """The credentials are missing or wrong."""


class _Later(AuthenticationError):
    """Too many credentials wait for their check."""


class _Backend(AuthenticationBackend):
    """Checks credentials one at a time, in a thread: guesses never keep the processors busy."""

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
            # Another request may have brought the same meanwhile.
            return self._passwords.known(given) or await self._background.run(partial(self._passwords.check, given))


def _refuse(_: HTTPConnection, error: AuthenticationError) -> Response:
    nosniff = {"X-Content-Type-Options": "nosniff"}
    if isinstance(error, _Later):
        return PlainTextResponse("too many passwords to check, try again\n", 503, {"Retry-After": "5", **nosniff})
    realm = 'Basic realm="jobmetrics", charset="UTF-8"'
    return PlainTextResponse("unauthorized\n", 401, {"WWW-Authenticate": realm, **nosniff})


def authentication(users: Mapping[str, bytes]) -> Middleware:
    """The middleware that lets requests through if their password is right. users: bcrypt hashes by name."""
    return Middleware(AuthenticationMiddleware, backend=_Backend(Passwords(users)), on_error=_refuse)
