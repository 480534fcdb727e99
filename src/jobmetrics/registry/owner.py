"""What a slot's owner record says of its process, as far as the system tells."""

from __future__ import annotations

import os
import time
from typing import NamedTuple

_TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100
_DEAD = (b"", b"Z", b"X")  # /proc/PID/stat does not exist; a zombie; a process that is exiting


class Holder(NamedTuple):
    """Who holds a slot, in ASCII, cut at 16 bytes. capacity: jobs it can run at once."""

    system: bytes = b""
    role: bytes = b""
    capacity: int = 1


def process_start() -> int:
    """When this process started, in clock ticks since boot; 0 where the system does not tell."""
    return _state_and_start("self")[1]


def is_alive(pid: int, start: int) -> bool:
    """Whether a process of this pid namespace still runs. start: as `process_start` gives it.

    False also where that cannot be known: its pid may be another process's by now.
    """
    try:
        os.kill(pid, 0)
    except PermissionError:
        pass  # another user's
    except OSError:
        return False
    state, started = _state_and_start(str(pid))
    return state not in _DEAD and start > 0 and abs(started - start) <= _TICKS


def _state_and_start(pid: str) -> tuple[bytes, int]:
    """The state's letter and the start of a process, from its fields 3 and 22 in /proc/PID/stat, proc(5).

    The command name before them may hold spaces and brackets.
    """
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            fields = os.read(fd, 2048).rpartition(b")")[2].split()
            return fields[0], int(fields[19])
        finally:
            os.close(fd)
    except (OSError, ValueError, IndexError):
        return b"", 0


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
