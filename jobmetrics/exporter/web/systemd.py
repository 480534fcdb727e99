"""Tells systemd how the service is doing, where it asked to be told (sd_notify(3))."""

from __future__ import annotations

import os
import socket

VARIABLE = "NOTIFY_SOCKET"


def notify(state: str) -> bool:
    """Send a state such as READY=1 to the socket that systemd named; whether it was sent.

    Without the variable nothing happens. A manager that is gone is no reason for the exporter to stop.
    """
    address = os.environ.get(VARIABLE, "")
    if not address or not hasattr(socket, "AF_UNIX"):
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]  # Linux' abstract namespace
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.connect(address)
            sock.sendall(state.encode())
    except (OSError, ValueError):
        return False
    return True
