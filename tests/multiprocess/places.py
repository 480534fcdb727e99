"""Disks, mounts and users for tests: small file systems, read-only ones, and other users' processes."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

NOBODY = 65534
ALICE, BOB, CAROL = 54321, 54322, 54323  # users without an entry in /etc/passwd
TEAM, OTHERS = 54400, 54401

PAGE = os.sysconf("SC_PAGE_SIZE")


def need_root() -> None:
    """Skip where this process may not mount a file system or become another user."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a file system or to become another user")


@contextlib.contextmanager
def open_place() -> Iterator[Path]:
    """A folder that any user can enter; pytest's temporary folders are private."""
    path = Path(tempfile.mkdtemp(prefix="jobmetrics-test-"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def small_disk(path: Path, options: str) -> Iterator[Path]:
    """A file system in memory of a few pages; options such as size=256k."""
    need_root()
    path.mkdir()
    _mount("-t", "tmpfs", "-o", options, "tmpfs", str(path))
    try:
        yield path
    finally:
        _unmount(path)


@contextlib.contextmanager
def read_only_view(source: Path, path: Path) -> Iterator[Path]:
    """Mount a folder read-only under another path."""
    need_root()
    path.mkdir()
    _mount("--bind", str(source), str(path))
    try:
        _mount("-o", "remount,bind,ro", str(path))
        yield path
    finally:
        _unmount(path)


def _mount(*arguments: str) -> None:
    done = subprocess.run(["mount", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mount {' '.join(arguments)} is refused here: {done.stderr.strip()}")


def _unmount(path: Path) -> None:
    subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(disk: Path, free_pages: int = 0) -> Path:
    """Take all space of a disk except some pages; return the file that takes it."""
    filler = disk / "filler"
    with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(PAGE))
    os.truncate(filler, max(0, filler.stat().st_size - free_pages * PAGE))
    return filler


def become(user: int, group: int | None = None, *more_groups: int) -> None:
    """In a forked child: become another user."""
    os.setgroups(list(more_groups))
    os.setgid(user if group is None else group)
    os.setuid(user)
