"""The sockets the exporter listens on."""

from __future__ import annotations

import errno
import socket
from contextlib import suppress

from jobmetrics.errors import JobmetricsError, SettingsError

BACKLOG = 128

# What a machine without IPv6 says about ::1, the other half of "localhost".
_NO_SUCH_ADDRESS = frozenset({errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT})


def listen(address: str) -> list[socket.socket]:
    """Listen on 'HOST:PORT', '[V6]:PORT' or ':PORT' (all interfaces); one socket an address of the host.

    Port 0 takes a free one, the same for all.

    Raises:
        SettingsError: The host has no address.
        JobmetricsError: The address cannot be used now, for example because the port is in use.
    """
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not host:
        return _all_interfaces(address, int(port))
    try:
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError):
        raise SettingsError(f"cannot listen on {address}: {host!r} is no address of this machine") from None
    sockets: list[socket.socket] = []
    failure: OSError | None = None
    for family, _, _, _, place in dict.fromkeys(found):
        taken = sockets[0].getsockname()[1] if sockets else place[1]
        try:
            sockets.append(socket.create_server((place[0], taken, *place[2:]), family=family, backlog=BACKLOG))
        except OSError as error:
            failure = error
            if error.errno not in _NO_SUCH_ADDRESS:
                close(sockets)
                raise _refused(address, error) from None
    if not sockets:
        raise _refused(address, failure) from None
    return sockets


def _all_interfaces(address: str, port: int) -> list[socket.socket]:
    if socket.has_dualstack_ipv6():
        with suppress(OSError):  # IPv6 may be switched off; if the port is taken, IPv4 says so below
            return [socket.create_server(("::", port), family=socket.AF_INET6, backlog=BACKLOG, dualstack_ipv6=True)]
    try:
        return [socket.create_server(("", port), backlog=BACKLOG)]
    except OSError as error:
        raise _refused(address, error) from None


def _refused(address: str, error: OSError | None) -> JobmetricsError:
    if error is None:
        reason = "it has no address"
    elif error.errno == errno.EADDRINUSE:
        reason = "the port is in use"
    elif error.errno == errno.EACCES:
        reason = "this user may not use the port"
    elif error.errno in _NO_SUCH_ADDRESS:
        reason = "this machine has no such address"
    else:
        reason = error.strerror or str(error)
    return JobmetricsError(f"cannot listen on {address}: {reason}")


def close(sockets: list[socket.socket]) -> None:
    """Close them all."""
    for sock in sockets:
        sock.close()


def url(sock: socket.socket, scheme: str = "http") -> str:
    """Where a client on this machine finds the socket: 'SCHEME://HOST:PORT', with the real port.

    A socket of all interfaces is named by IPv4's loopback address if it takes IPv4: a host may have no ::1.
    """
    host, port = sock.getsockname()[:2]
    if host == "::" and not sock.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY):
        host = "127.0.0.1"
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)  # noqa: S104 - read only
    return f"{scheme}://{host}:{port}"
