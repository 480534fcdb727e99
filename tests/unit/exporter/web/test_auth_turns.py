"""The order of password checks between clients."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from jobmetrics.exporter.web import auth
from jobmetrics.exporter.web.auth import ALL_WAITING, PLACES, WAITING, Turns, client_of


class Checks:
    """Requests that wait for their turn; `next` finishes the running check."""

    def __init__(self) -> None:
        self.turns = Turns()
        self.checked: list[str] = []
        self.sent_back: list[str] = []
        self._ends = asyncio.Semaphore(0)
        self._tasks: list[asyncio.Task[None]] = []

    async def ask(self, client: str, password: str) -> None:
        self._tasks.append(asyncio.create_task(self._ask(client, password)))
        await self.settle()

    async def _ask(self, client: str, password: str) -> None:
        async with self.turns.turn(client, password.encode()) as has_turn:
            if not has_turn:
                self.sent_back.append(password)
                return
            self.checked.append(password)
            await self._ends.acquire()

    async def next(self, checks: int = 1) -> None:
        for _ in range(checks):
            self._ends.release()
            await self.settle()

    async def go_away(self) -> None:
        """The client of the last request disconnects."""
        self._tasks.pop().cancel()
        await self.settle()

    @staticmethod
    async def settle() -> None:
        for _ in range(10):
            await asyncio.sleep(0)

    async def end(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def checks(test: Callable[[Checks], Awaitable[None]]) -> Callable[[], None]:
    def run() -> None:
        async def in_loop() -> None:
            made = Checks()
            await test(made)
            await made.end()

        asyncio.run(in_loop())

    return run


@checks
async def test_clients_take_turns(checks: Checks) -> None:
    for number in range(4):
        await checks.ask("stranger", f"guess {number}")
    await checks.ask("prometheus", "right")
    await checks.next(2)
    assert checks.checked == ["guess 0", "guess 1", "right"]
    await checks.next(9)
    assert checks.checked[3:] == ["guess 2", "guess 3"]


@checks
async def test_a_client_sent_back_comes_before_later_clients(checks: Checks) -> None:
    for number in range(WAITING + 1):
        await checks.ask("proxy", f"guess {number}")
    await checks.ask("proxy", "right")
    assert checks.sent_back == ["right"]
    await checks.next(WAITING)
    for number in range(WAITING + 5):
        await checks.ask("proxy", f"later {number}")
    await checks.ask("proxy", "right")
    await checks.next()
    assert checks.checked[-1] == "right"
    assert "right" not in checks.sent_back[1:]


@checks
async def test_the_number_of_waiting_requests_is_limited(checks: Checks) -> None:
    for client in range(20):
        for number in range(WAITING + 2):
            await checks.ask(f"{client}", f"{client} {number}")
    assert len(checks.sent_back) == 20 * (WAITING + 2) - ALL_WAITING - 1


@checks
async def test_a_request_that_ends_while_it_waits_delays_no_other(checks: Checks) -> None:
    await checks.ask("a", "first")
    await checks.ask("a", "gone")
    await checks.go_away()
    await checks.ask("a", "second")
    await checks.next()
    assert checks.checked == ["first", "second"]
    await checks.go_away()  # during its check
    await checks.ask("a", "third")
    assert checks.checked[-1] == "third"


def test_the_number_of_kept_places_is_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "PLACES", 100)

    @checks
    async def asked(checks: Checks) -> None:
        for number in range(300):
            await checks.ask("a", f"{number}")
        assert len(checks.turns._places) <= 100

    asked()
    assert PLACES > 100


@pytest.mark.parametrize(
    ("host", "client"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("::ffff:10.0.0.1", "10.0.0.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("", ""),
        ("testclient", ""),
    ],
)
def test_client_of(host: str, client: str) -> None:
    assert client_of(host) == client
