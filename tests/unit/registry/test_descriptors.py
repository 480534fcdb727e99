"""Which descriptors a forked child lets go of."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jobmetrics.registry import descriptors


@pytest.fixture
def fd(tmp_path: Path) -> int:
    (tmp_path / "file").touch()
    return descriptors.open_noted(str(tmp_path / "file"), os.O_RDWR)


def test_open_descriptor_is_ours(fd: int) -> None:
    assert fd in descriptors.ours(besides=())
    descriptors.close(fd)


def test_closed_descriptor_is_not(fd: int) -> None:
    descriptors.close(fd)
    assert fd not in descriptors.noted
    assert fd not in descriptors.ours(besides=())


def test_descriptor_that_is_another_file_now_is_not(fd: int, tmp_path: Path) -> None:
    other = os.open(tmp_path, os.O_RDONLY)
    os.dup2(other, fd)
    ours = descriptors.ours(besides=())
    os.close(other)
    os.close(fd)
    assert fd not in ours


def test_descriptor_that_somebody_else_closed_is_not(fd: int) -> None:
    os.close(fd)
    assert fd not in descriptors.ours(besides=())
    assert fd not in descriptors.noted


def test_descriptor_that_is_kept_is_left_out(fd: int) -> None:
    assert fd not in descriptors.ours(besides=[fd])
    descriptors.close(fd)
