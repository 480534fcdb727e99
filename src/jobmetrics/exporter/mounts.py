"""What kind of file system a path is on, and whether another service would see the same one."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

_MOUNTS = Path("/proc/self/mountinfo")


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount. root: what of the file system is mounted here; kind: as mount(8) calls it."""

    root: str
    point: str
    kind: str


def mount_of(path: str, mounts: Path = _MOUNTS) -> Mount | None:
    """The mount a path is on, None where the system does not tell. Source: proc_pid_mountinfo(5)."""
    try:
        lines = mounts.read_text(errors="surrogateescape").splitlines()
    except OSError:
        return None
    real = os.path.realpath(path)
    found = None
    for line in lines:
        before, _, after = line.partition(" - ")
        fields = before.split()
        if len(fields) < 5 or not after:
            continue
        point = fields[4].replace("\\040", " ")
        inside = real == point or real.startswith(point.rstrip("/") + "/")
        if inside and (found is None or len(point) >= len(found.point)):
            found = Mount(fields[3], point, after.split()[0])
    return found


def is_private_tmp(mount: Mount) -> bool:
    """Whether this is the /tmp that systemd gives one service alone (PrivateTmp=, systemd.exec(5))."""
    return mount.point in {"/tmp", "/var/tmp"} and "systemd-private-" in mount.root  # noqa: S108 - read only
