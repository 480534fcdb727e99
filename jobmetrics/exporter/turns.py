"""Which password is checked next when more requests come than can be checked.

Clients take turns, so that one that guesses delays nobody else by more than one check. Within a client, credentials
that came first are checked first. A place is kept when the client gets 503: a client that repeats
its credentials, as Prometheus does, is served before any number of guesses that came later.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections import OrderedDict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

WAITING = 8  # requests of one client that may wait
ALL_WAITING = 64  # requests of all clients together
PLACES = 16_384  # credentials whose place is kept, the latest asked about; some 3 MB

_IPV6_CLIENT = 64  # bits of an IPv6 address that tell clients apart: each has the rest to itself


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
