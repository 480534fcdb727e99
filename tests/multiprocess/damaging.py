"""Ways to damage a file of the registry directory."""

from __future__ import annotations

import os
import random
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path

Damage = Callable[[Path], None]


def cut_to(size: int) -> Damage:
    def damage(file: Path) -> None:
        assert size < file.stat().st_size
        os.truncate(file, size)

    return damage


def cut_in_half(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def cut_the_last_byte(file: Path) -> None:
    os.truncate(file, file.stat().st_size - 1)


def zero(file: Path) -> None:
    file.write_bytes(bytes(file.stat().st_size))


def zero_the_header(file: Path) -> None:
    overwrite(file, 0, bytes(64))


def random_bytes(file: Path) -> None:
    seed = zlib.crc32(file.name.encode())
    file.write_bytes(random.Random(seed).randbytes(file.stat().st_size))


def foreign(file: Path) -> None:
    file.write_text("# a file of another program\n" * 500, encoding="utf-8")


def empty_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def full_folder(file: Path) -> None:
    empty_folder(file)
    (file / "kept").write_text("another user's", encoding="utf-8")


def fifo(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def link_to_nowhere(file: Path) -> None:
    file.unlink()
    file.symlink_to(file.parent / "nowhere")


def link_to_its_copy(file: Path) -> None:
    """Replace the file by a link to a copy of it outside the directory."""
    outside = file.parent.parent / f"outside-{file.name}"
    shutil.move(file, outside)
    file.symlink_to(outside)


# Damage after which no part of the file can be used.
WHOLE_FILE: tuple[Damage, ...] = (
    cut_to(0), cut_to(1), cut_to(63), cut_to(64), zero, zero_the_header, random_bytes, foreign, empty_folder,
    full_folder, fifo, link_to_nowhere, link_to_its_copy,
)  # fmt: skip


def named(damage: Damage) -> str:
    """Name a parametrised test after its damage."""
    cells = damage.__closure__
    size = f"-{cells[0].cell_contents}" if cells else ""
    return damage.__qualname__.partition(".")[0] + size


def overwrite(file: Path, offset: int, data: bytes) -> None:
    """Write into a file that other processes may have mapped."""
    fd = os.open(file, os.O_WRONLY)
    try:
        os.pwrite(fd, data, offset)
    finally:
        os.close(fd)
