"""The work of the jobs. It records a custom metric, stages and items."""

from __future__ import annotations

import csv
import gzip
import hashlib
import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

from jobmetrics import Counter, add_items, stage

REVENUE = Counter("shop_revenue_euros", "Value of the orders that were imported.", ["country"])

UPLOAD_CHUNKS = 8
UPLOAD_PAUSE_SECONDS = 0.02


class NotDeliveredError(Exception):
    """The file does not exist yet."""


class ChecksumMismatchError(Exception):
    """The file is incomplete or wrong."""


NOT_READY = (NotDeliveredError, ChecksumMismatchError)
"""Errors that are worth a retry, because the delivery may be incomplete."""


def import_orders(path: str) -> int:
    """Read a CSV file of orders and add up their value; returns their count.

    Raises:
        ValueError: If a price is not a number.
    """
    with stage("read"), Path(path).open(encoding="utf-8", newline="") as file:
        orders = list(csv.DictReader(file))
    with stage("add up"):
        for country, value in _value_by_country(orders).items():
            REVENUE.labels(country).inc(value)
    add_items(len(orders))
    return len(orders)


def _value_by_country(orders: Iterable[dict[str, str]]) -> dict[str, float]:
    values: dict[str, float] = {}
    for order in orders:
        values[order["country"]] = values.get(order["country"], 0.0) + float(order["price"])
    return values


def compress_file(path: str, target: str) -> int:
    """Write a gzip copy; returns its size in bytes."""
    packed = gzip.compress(Path(path).read_bytes(), compresslevel=9)
    Path(target).write_bytes(packed)
    return len(packed)


def check_archive(path: str) -> int:
    """Decompress a gzip file; returns the size of its content in bytes.

    Raises:
        EOFError: If the file is truncated.
    """
    return len(gzip.decompress(Path(path).read_bytes()))


def deliver_file(source: str, target: str) -> int:
    """Copy a file in chunks, as slowly as an upload; returns its size in bytes."""
    content = Path(source).read_bytes()
    step = len(content) // UPLOAD_CHUNKS + 1
    with Path(target).open("wb", buffering=0) as file:
        for start in range(0, len(content), step):
            file.write(content[start : start + step])
            time.sleep(UPLOAD_PAUSE_SECONDS)
    return len(content)


def verify_delivery(path: str, digest: str) -> int:
    """Check a delivered file against its SHA-256; returns its size in bytes."""
    try:
        content = Path(path).read_bytes()
    except FileNotFoundError as error:
        raise NotDeliveredError(path) from error
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise ChecksumMismatchError(f"{path}: {found} is not {digest}")
    return len(content)


def clean_up(folder: str, seconds: float) -> int:
    """Delete the files of a folder that are older than this time in seconds; returns their count."""
    oldest = time.time() - seconds
    deleted = 0
    for path in Path(folder).iterdir():
        if path.stat().st_mtime < oldest:
            path.unlink(missing_ok=True)
            deleted += 1
    add_items(deleted)
    return deleted


def call_partner(seconds: float) -> None:
    """Wait, as for a partner that answers slowly."""
    time.sleep(seconds)


def exhaust_memory() -> None:
    """Kill this process, as the kernel does when memory runs out."""
    os.kill(os.getpid(), signal.SIGKILL)
