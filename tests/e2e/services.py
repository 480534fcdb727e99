"""Services as processes of this host: started, and ended as an init system ends them."""

from __future__ import annotations

import contextlib
import subprocess
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

STOP_SECONDS = 30.0

_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@contextlib.contextmanager
def running(
    command: Sequence[str], environment: Mapping[str, str], log: Path, folder: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """A process with its output in a file; at the end SIGTERM, then SIGKILL if it does not exit."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        yield process
    finally:
        process.terminate()
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def get(url: str) -> str:
    """The body of an answer with status 200; otherwise nothing."""
    try:
        with _direct.open(url, timeout=10) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""
