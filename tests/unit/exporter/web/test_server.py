"""Addresses to listen on, on the loopback interface only."""

from __future__ import annotations

import asyncio
import contextlib
import math
import socket
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from uvicorn.server import ServerState

from jobmetrics.errors import JobmetricsError
from jobmetrics.exporter.web import server


@contextlib.contextmanager
def opened(address: str) -> Iterator[list[socket.socket]]:
    sockets = server.listen(address)
    try:
        yield sockets
    finally:
        server.close(sockets)


def has_ipv6() -> bool:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6 loopback address")


def answers(host: str, port: int) -> bool:
    with socket.create_connection((host, port), timeout=10):
        return True


def test_port_0_takes_a_free_one_and_the_url_shows_it() -> None:
    with opened("127.0.0.1:0") as (sock,):
        port = sock.getsockname()[1]
        assert server.url(sock) == f"http://127.0.0.1:{port}"
        assert answers("127.0.0.1", port)


@needs_ipv6
def test_ipv6() -> None:
    with opened("[::1]:0") as (sock,):
        port = sock.getsockname()[1]
        assert server.url(sock) == f"http://[::1]:{port}"
        assert answers("::1", port)


def test_a_name_is_listened_on_at_all_its_addresses_with_one_port() -> None:
    with opened("localhost:0") as sockets:
        assert len({sock.getsockname()[1] for sock in sockets}) == 1
        assert all(answers(*sock.getsockname()[:2]) for sock in sockets)


def test_without_a_host_every_interface_is_used() -> None:
    with opened(":0") as (sock,):
        port = sock.getsockname()[1]
        assert answers("127.0.0.1", port)
        assert server.url(sock) == f"http://127.0.0.1:{port}"


@needs_ipv6
def test_every_interface_of_ipv6_alone_is_shown_by_its_loopback_address() -> None:
    with opened("[::]:0") as (sock,):
        port = sock.getsockname()[1]
        assert server.url(sock) == f"http://[::1]:{port}"
        assert answers("::1", port)


def test_a_port_in_use_is_one_clear_line() -> None:
    with opened("127.0.0.1:0") as (sock,):
        port = sock.getsockname()[1]
        with pytest.raises(JobmetricsError, match=f"^cannot listen on 127.0.0.1:{port}: the port is in use$"):
            server.listen(f"127.0.0.1:{port}")
    with opened(":0") as (sock,):
        port = sock.getsockname()[1]
        with pytest.raises(JobmetricsError, match="the port is in use"):
            server.listen(f":{port}")


@pytest.mark.parametrize("address", ["no-such-host.invalid:0", "[::zz]:0", f"{'a' * 70}.invalid:0", "192.0.2.1:0"])
def test_a_host_that_is_not_local_is_one_clear_line(address: str) -> None:
    with pytest.raises(JobmetricsError, match=r"^cannot listen on .*: .*address"):
        server.listen(address)


def test_a_connection_waits_for_its_client_except_while_a_request_is_answered() -> None:
    """Only waiting connections make room for a new one."""
    made: list[server.Connection] = []
    answering = []

    async def application(scope: Any, receive: Any, send: Any) -> None:
        answering.append(made[0].waiting_since)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
        await send({"type": "http.response.body", "body": b"ok"})

    async def requests() -> None:
        config = uvicorn.Config(application, http=server.Connection, ws="none", lifespan="off", log_config=None)
        state = ServerState()

        def connection() -> server.Connection:
            made.append(server.Connection(config=config, server_state=state, app_state={}))
            return made[0]

        listening = await asyncio.get_running_loop().create_server(connection, "127.0.0.1", 0)
        async with listening:
            reader, writer = await asyncio.open_connection(*listening.sockets[0].getsockname())
            for sent, after in ((1, b"keep-alive"), (2, b"close")):
                writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: %s\r\n\r\n" % after)
                await reader.readuntil(b"\r\n\r\nok")
                assert answering == [math.inf] * sent
                assert math.isfinite(made[0].waiting_since)
            assert await reader.read() == b""
            writer.close()
        assert state.connections == set()

    asyncio.run(asyncio.wait_for(requests(), 30))
