"""The files that the jobs work on. Producers make them in a folder shared with workers; some are damaged on purpose."""

from __future__ import annotations

import csv
import gzip
import hashlib
import os
import random
import tempfile
from pathlib import Path

COUNTRIES = ("AT", "DE", "FR", "IT")
ROWS = (50, 500)


def folder() -> Path:
    """The folder that producers and workers share: SHOP_DIR, by default `shop-UID` in the temporary directory."""
    path = Path(os.environ.get("SHOP_DIR") or Path(tempfile.gettempdir(), f"shop-{os.getuid()}"))
    path.mkdir(parents=True, exist_ok=True)
    return path


def write_orders(path: Path, *, damaged: bool = False) -> Path:
    """Make a CSV file of orders; a damaged one has a price that is not a number."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("order", "country", "price"))
        for number in range(random.randint(*ROWS)):
            writer.writerow((number, random.choice(COUNTRIES), f"{random.uniform(1, 200):.2f}"))
        if damaged:
            writer.writerow(("last", COUNTRIES[0], "n/a"))
    return path


def write_archive(path: Path, content: bytes, *, damaged: bool = False) -> Path:
    """Make a gzip file; a damaged one is truncated."""
    packed = gzip.compress(content)
    path.write_bytes(packed[: len(packed) // 2] if damaged else packed)
    return path


def digest(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
