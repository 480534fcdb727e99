"""What a slot's owner record says of its process, as far as the system tells."""

from __future__ import annotations

import os
import time
from typing import NamedTuple

_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100


class Holder(NamedTuple):
    """Who holds a slot, in ASCII, cut at 16 bytes. capacity: jobs it can run at once."""

    system: bytes = b""
    role: bytes = b""
    capacity: int = 1


def process_start() -> int:
    """When this process started, in clock ticks since boot; 0 where the system does not tell.

    Source: field 22 of /proc/PID/stat, proc(5). The command name before it may hold spaces and brackets.
    """
    try:
        fd = os.open("/proc/self/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            return int(os.read(fd, 2048).rpartition(b")")[2].split()[19])
        finally:
            os.close(fd)
    except (OSError, ValueError, IndexError):
        return 0


def fork_moment() -> int:
    """The same for a process that was forked just now, from the clock that the kernel took it from: right to a tick."""
    try:
        return int(time.clock_gettime(time.CLOCK_BOOTTIME) * _TICKS)
    except (AttributeError, OSError):
        return 0


def pid_namespace() -> int:
    """The inode of this process's pid namespace; 0 where there is none. Children mostly share it."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0
