"""The work itself: pure functions on files. They know nothing of Celery, RQ or metrics."""

from __future__ import annotations

import ast
import gzip
import hashlib
import io
import os
import time
import tokenize
from pathlib import Path

CHUNKS = 8
CHUNK_PAUSE_SECONDS = 0.02


class NotDeliveredError(Exception):
    """The file is not here yet."""


class ChecksumMismatchError(Exception):
    """The file is here, and is not (yet) what it ought to be."""


NOT_READY = (NotDeliveredError, ChecksumMismatchError)
"""What is worth another attempt: the file may still be on its way."""


def hash_file(path: str) -> str:
    """SHA-256 of a file, in hexadecimal."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def compress_file(path: str, target: str) -> int:
    """Write a gzip copy; returns its size in bytes."""
    packed = gzip.compress(Path(path).read_bytes(), compresslevel=9)
    # Two jobs may compress the same file at one time; each replaces the copy as a whole.
    draft = Path(f"{target}.{os.getpid()}")
    draft.write_bytes(packed)
    draft.replace(target)
    return len(packed)


def decompress_file(path: str) -> int:
    """Size in bytes of what a gzip file holds; EOFError if it was cut short."""
    return len(gzip.decompress(Path(path).read_bytes()))


def parse_source(path: str) -> int:
    """Tokens and syntax nodes of a Python file; UnicodeDecodeError or SyntaxError if it is damaged."""
    source = Path(path).read_bytes().decode("utf-8")
    nodes = sum(1 for _ in ast.walk(ast.parse(source, path)))
    tokens = sum(1 for _ in tokenize.generate_tokens(io.StringIO(source).readline))
    return nodes + tokens


def deliver_file(source: str, target: str) -> int:
    """Copy a file in place bit by bit, as an upload over a slow line does; returns its size in bytes."""
    content = Path(source).read_bytes()
    step = len(content) // CHUNKS + 1
    with Path(target).open("wb", buffering=0) as file:
        for start in range(0, len(content), step):
            file.write(content[start : start + step])
            time.sleep(CHUNK_PAUSE_SECONDS)
    return len(content)


def verify_delivery(path: str, digest: str) -> int:
    """Check a delivered file against its SHA-256 and take it in; returns its size in bytes."""
    file = Path(path)
    try:
        content = file.read_bytes()
    except FileNotFoundError as error:
        raise NotDeliveredError(path) from error
    found = hashlib.sha256(content).hexdigest()
    if found != digest:
        raise ChecksumMismatchError(f"{path}: {found} is not {digest}")
    file.unlink()
    return len(content)


ALL = (hash_file, compress_file, decompress_file, parse_source, deliver_file, verify_delivery)
"""Every kind of job there is."""
