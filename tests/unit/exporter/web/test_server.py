"""Addresses to listen on, on the loopback interface only."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Iterator

import pytest

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
