"""The checks of `jobmetrics check`. Each finding is one line with its remedy."""

from __future__ import annotations

import contextlib
import html
import importlib.metadata
import os
import sys
import time
import urllib.error
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from types import MappingProxyType

from prometheus_client.metrics_core import Metric

from jobmetrics import __version__
from jobmetrics.errors import RegistryError
from jobmetrics.exporter import incidents, local_processes
from jobmetrics.exporter.collectors import CollectorState
from jobmetrics.exporter.web.pages import DIRECTORY_HEADER, fingerprint
from jobmetrics.families import (
    DROPPED_SERIES,
    DROPPED_UPDATES,
    INTERNAL_ERRORS,
    INVALID_FAMILIES,
    Family,
)
from jobmetrics.findings import NOTE, OK, PROBLEM, STARTING, Finding, directory_access
from jobmetrics.integration import find_systems
from jobmetrics.registry import MAX_CLOCK_AHEAD, Directory, pid_namespace
from jobmetrics.registry.read import Snapshot, SnapshotReader
from jobmetrics.settings import Settings, default_dir, passed_over

_NETWORK = ("nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "glusterfs", "fuse.sshfs", "fuse.s3fs", "lustre", "afs")
_MEMORY = ("tmpfs", "ramfs")
_ROOM = 8 * 2**20  # bytes; enough for a few hundred processes with a few hundred series
_NEARLY = 0.9  # of the series limit
_FEWER_SERIES = "find its label with too many values, or raise max_series; then run jobmetrics prune"
_SHOWN = 3  # working directories named in one finding

_PAGE = 100_000  # bytes of a page that are read


def versions() -> Iterator[Finding]:
    """Check the versions of Python and the packages, and that job systems can be loaded."""
    systems, broken = find_systems()
    oldest = {system.package: system.minimum for system in systems if system.package}
    found = [f"jobmetrics {__version__}", "Python {}.{}.{}".format(*sys.version_info[:3])]
    old = []
    for name in (*oldest, "redis", "prometheus-client", "numpy"):
        try:
            version = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
        found.append(f"{name} {version}")
        minimum = oldest.get(name, "")
        if minimum and _numbers(version) < _numbers(minimum):
            old.append(Finding(PROBLEM, f"{name} {version} is too old", f"use {name} {minimum} or newer"))
    yield Finding(OK, ", ".join(found))
    yield from old
    for line in broken:
        yield Finding(PROBLEM, line, "update or remove its package")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())


def directory(settings: Settings, starting: Mapping[str, float] = MappingProxyType({})) -> Iterator[Finding]:
    """Check the registry directory: its path, its access rights, its file system and its contents.

    Args:
        settings: The settings.
        starting: The seconds since the start of workers that have just been started, by job system.
    """
    path = settings.dir
    if held := passed_over(settings):
        yield Finding(
            NOTE, f"another user owns {held}; workers and exporter of this user use {path} instead",
            "set JOBMETRICS_DIR to a directory that other users cannot create",
        )  # fmt: skip
    found = Directory(path, settings.dir_group, settings.dir_owner)
    access, info = directory_access(found)
    absent = info is None and not os.path.lexists(path)  # Path.exists may raise
    yield _starts(starting) if absent and starting else access
    if info is None:
        if absent:
            yield from _file_system(str(Path(path).parent))
        return
    mine = info.st_uid == os.geteuid()
    if not mine and os.geteuid() != 0 and settings.dir_group is None:
        yield Finding(
            NOTE, f"it belongs to user {info.st_uid}: workers of this process's user {os.geteuid()} cannot record",
            "set dir_group to share it",
        )  # fmt: skip
    yield from _file_system(path)
    reader = SnapshotReader(found)
    try:
        snapshot = reader.read()
    except (OSError, RegistryError) as error:
        yield Finding(
            PROBLEM, f"it cannot be read: {error}", "run this as the workers' user, or remove the damaged file"
        )
        return
    finally:
        reader.close()
    yield from contents(snapshot, starting=starting)
    if path == default_dir():
        yield from _applications(snapshot)


def _applications(snapshot: Snapshot) -> Iterator[Finding]:
    """Report processes with different working directories: several applications may share the default directory."""
    found = set()
    for owner in snapshot.owners:
        if owner.namespace in (0, pid_namespace()):
            with contextlib.suppress(OSError):  # the process has ended or is another user's, or there is no /proc
                found.add(str(Path(f"/proc/{owner.pid}/cwd").readlink()))
    if len(found) > 1:
        shown = ", ".join(sorted(found)[:_SHOWN]) + (", ..." if len(found) > _SHOWN else "")
        yield Finding(
            NOTE, f"processes with {len(found)} working directories record here: {shown}",
            "if they belong to several applications, set JOBMETRICS_APP for the workers and exporter of each",
        )  # fmt: skip


def _file_system(path: str) -> Iterator[Finding]:
    mount = mount_of(path)
    if mount is None:
        return
    if mount.kind in _NETWORK:
        yield Finding(
            PROBLEM, f"it is on {mount.kind}, a network file system, where mapped files lose updates",
            "set JOBMETRICS_DIR to a directory under /dev/shm",
        )  # fmt: skip
    elif mount.kind in _MEMORY:
        yield Finding(OK, f"file system: {mount.kind}")
    else:
        yield Finding(NOTE, f"file system: {mount.kind}; a directory under /dev/shm avoids disk writes")
    if is_private_tmp(mount):
        yield Finding(
            PROBLEM, f"{mount.point} is private to this service (PrivateTmp); other services see another one",
            "set JOBMETRICS_DIR to a directory under /dev/shm or /run, for workers and exporter",
        )  # fmt: skip
    try:
        room = os.statvfs(path)
    except OSError:
        return
    if room.f_bavail * room.f_frsize < _ROOM:
        yield Finding(
            PROBLEM, f"only {room.f_bavail * room.f_frsize // 1024} KiB are free on its file system",
            "free some space; in a container, enlarge /dev/shm (docker run --shm-size)",
        )  # fmt: skip


def _starts(starting: Mapping[str, float]) -> Finding:
    system, seconds = min(starting.items(), key=lambda each: each[1])
    text = f"a {system} worker was started {incidents.span(seconds)} ago, and nothing has been recorded yet"
    return Finding(STARTING, text, "run this again in a minute")


def contents(
    snapshot: Snapshot, now: float | None = None, starting: Mapping[str, float] = MappingProxyType({})
) -> Iterator[Finding]:
    """Check slots, series, losses and timestamps.

    Args:
        snapshot: A reading of the directory.
        now: Epoch seconds, the current time if None.
        starting: As for `directory`.
    """
    slots = f"{snapshot.live} live slots, {snapshot.free} free"
    if snapshot.damaged:
        yield Finding(
            PROBLEM, f"{slots}, {snapshot.damaged} damaged",
            "the exporter's log names them; to start again from 0, stop the workers and run jobmetrics prune",
        )  # fmt: skip
    elif not snapshot.live and starting:
        yield _starts(starting)
    elif not snapshot.live:
        yield Finding(
            PROBLEM, f"{slots}: no living process records here",
            "start a worker with jobmetrics enabled, and look for messages of jobmetrics in its log",
        )  # fmt: skip
    else:
        yield Finding(OK, slots)
    if snapshot.limit and snapshot.series >= _NEARLY * snapshot.limit:
        yield Finding(
            PROBLEM, f"{snapshot.series} of {snapshot.limit} series are used{_largest(snapshot)}", _FEWER_SERIES
        )
    elif snapshot.limit:
        yield Finding(OK, f"{snapshot.series} of {snapshot.limit} series")
    lost = {
        DROPPED_SERIES.name: (f"series beyond the limit{_largest(snapshot)}", _FEWER_SERIES),
        DROPPED_UPDATES.name: (
            "updates that were not recorded", f"{DROPPED_UPDATES.name} shows them by reason and metric",
        ),
        INTERNAL_ERRORS.name: ("errors inside jobmetrics", "see the workers' logs"),
    }  # fmt: skip
    for family, samples in snapshot.families:
        count = sum(sample.value for sample in samples)
        if family.name in lost and count:
            text, remedy = lost[family.name]
            yield Finding(PROBLEM, f"{count:.0f} {text}", remedy)
    if snapshot.superseded:
        yield Finding(
            NOTE, f"{snapshot.superseded} series are not shown: a newer declaration has other labels or buckets",
            "restart workers with older code; if several applications record here, set JOBMETRICS_APP for each",
        )  # fmt: skip
    yield from _of_systems(snapshot)
    now = time.time() if now is None else now
    ahead = max((active.oldest - now for active in snapshot.active if active.oldest is not None), default=0.0)
    if ahead > MAX_CLOCK_AHEAD:
        yield Finding(PROBLEM, f"a job started {ahead:.0f} s in the future: the clock was set back", "run NTP")
    if snapshot.ahead:
        yield Finding(
            PROBLEM, f"{snapshot.ahead} series have timestamps in the future and are not shown: the clock was set back",
            "run NTP; each series is shown again after the next success of its job type",
        )  # fmt: skip
    foreign = sum(owner.namespace not in (0, pid_namespace()) for owner in snapshot.owners)
    if foreign:
        yield Finding(
            NOTE, f"{foreign} slots belong to another pid namespace: the memory of their processes is not shown"
        )


def _largest(snapshot: Snapshot) -> str:
    """Name the metric with most series and its share of the limit; empty without series."""
    found = snapshot.by_metric.most_common(1)
    if not found or not found[0][1] or not snapshot.limit:
        return ""
    name, count = found[0]
    return f": {name} has most, {count} ({count / snapshot.limit:.0%} of the limit)"


def _of_systems(snapshot: Snapshot) -> Iterator[Finding]:
    """Run the job systems' own checks."""
    by_name = {family.name: samples for family, samples in snapshot.families}

    def recorded(family: Family) -> dict[tuple[str, ...], float]:
        samples = by_name.get(family.name, ())
        return {each.values: sum(each.buckets) if family.buckets else each.value for each in samples}

    for system in find_systems().systems:
        if system.checks is None:
            continue
        try:
            found = list(system.checks(recorded))
            if not all(isinstance(finding, Finding) for finding in found):
                raise TypeError
            yield from found
        except (Exception, SystemExit) as error:  # noqa: BLE001 - another package's code; its message may hold a secret
            yield Finding(PROBLEM, f"the checks of {system.name} failed: {type(error).__name__}", "update its package")


def brokers(states: Iterable[CollectorState]) -> Iterator[Finding]:
    """Check that the brokers answer."""
    for state in states:
        name = f"{state.name} broker {state.broker}"
        if state.up:
            yield Finding(OK, f"{name} answers")
        elif state.up is None:
            yield Finding(STARTING, f"{name} has not been read yet", "run this again, or with a longer --timeout")
        else:
            yield Finding(
                PROBLEM,
                f"{name}: {state.error or 'no answer in time'}",
                "check the address, the password and the network",
            )


def exposition(metrics: Iterable[Metric], settings: Settings) -> Iterator[Finding]:
    """Check that no metric is left out of the exporter's page."""
    name = settings.metric_prefix + INVALID_FAMILIES.name
    count = sum(sample.value for metric in metrics if metric.name == name for sample in metric.samples)
    if count:
        what = "1 metric cannot be shown and is" if count == 1 else f"{count:.0f} metrics cannot be shown and are"
        yield Finding(
            PROBLEM, f"{what} left out", "the log of the exporter or of jobmetrics dump gives the reason for each"
        )


def exporter(settings: Settings, started: float | None = None) -> Iterator[Finding]:
    """Check that an exporter, alone or mounted, answers at the configured address and reads this directory.

    Args:
        settings: The settings.
        started: Seconds since the start of an exporter that has just been started; None if there is none.
    """
    url = local_processes.local_url(settings.listen)
    code = 0
    try:
        _, page = local_processes.read_local(url, most=_PAGE)
    except urllib.error.HTTPError as error:
        error.close()
        code, page = error.code, ""
    except ConnectionError:
        yield Finding(NOTE, f"the server at {url} may use TLS: not checked")
        return
    except (OSError, HTTPException, ValueError):
        if started is not None:
            text = f"an exporter was started {incidents.span(started)} ago, and none answers at {url} yet"
            yield Finding(STARTING, text, "run this again in a minute")
            return
        yield Finding(
            PROBLEM, f"no exporter answers at {url}", "start jobmetrics exporter, or give its address with --listen"
        )
        return
    if "<title>jobmetrics</title>" in page:
        yield _same_directory(f"<code>{html.escape(settings.dir)}</code>" in page, url, settings)
        return
    read = _mounted(f"{url}metrics")
    if read is not None:
        yield _same_directory(read == fingerprint(settings.dir), f"{url}metrics", settings)
    elif code:
        asked = "asks for a password" if code == 401 else f"answers with HTTP {code}"
        yield Finding(NOTE, f"the server at {url} {asked}: not checked")
    else:
        yield Finding(
            PROBLEM, f"the server at {url} is not an exporter and has none at /metrics",
            "start jobmetrics exporter, or give its address with --listen",
        )  # fmt: skip


def _same_directory(same: bool, url: str, settings: Settings) -> Finding:
    if same:
        return Finding(OK, f"the exporter at {url} reads this directory")
    return Finding(PROBLEM, f"the server at {url} does not read {settings.dir}", "give both the same JOBMETRICS_DIR")


def _mounted(url: str) -> str | None:
    """Return the fingerprint of the directory that the server at a URL reads; None if it is not an exporter."""
    try:
        headers, _ = local_processes.read_local(url, most=_PAGE)
    except (OSError, HTTPException, ValueError):  # OSError includes HTTPError
        return None
    return headers.get(DIRECTORY_HEADER)


_MOUNTS = Path("/proc/self/mountinfo")


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount. root: the mounted directory of the file system. kind: the file system's type, as in mount(8)."""

    root: str
    point: str
    kind: str


def mount_of(path: str, mounts: Path = _MOUNTS) -> Mount | None:
    """Return the mount that a path is on; None if the system does not report it. Source: proc_pid_mountinfo(5)."""
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
    """Whether this is the private /tmp of a systemd service (PrivateTmp=, systemd.exec(5))."""
    return mount.point in {"/tmp", "/var/tmp"} and "systemd-private-" in mount.root  # noqa: S108 - read only
