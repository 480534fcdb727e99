"""The jobs of the RQ integration tests: each writes its own name once an execution, and ends in a way of its own."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any

from rq.job import Retry

from tests.integration import ledger


class Gone(Exception):
    """What some jobs raise on purpose."""


class Unreadable:
    """Its pickle cannot be read again."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return int, ("no number",)


class Deadly:
    """Reading its pickle kills the process that does."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return _die, ()


def _die() -> None:
    ledger.write("deadly")
    os.kill(os.getpid(), signal.SIGKILL)


def count(*_: object) -> None:
    ledger.write("count")


def succeed(seconds: float = 0.0) -> str:
    ledger.write("succeed")
    time.sleep(seconds)
    return "done"


def succeed_when_told(marker: str) -> None:
    """Waits for a file."""
    ledger.write("succeed_when_told")
    while not os.path.exists(marker):  # noqa: PTH110 - a marker file
        time.sleep(0.02)


def fork_and_fall_through() -> None:
    """Its child comes out of it too, as of any function, but leaves soon after."""
    ledger.write("fork_and_fall_through")
    child = os.fork()
    if child:
        os.waitpid(child, 0)
    else:
        sys.exit(0)


def fail() -> None:
    ledger.write("fail")
    raise Gone("on purpose")


def exit_early() -> None:
    ledger.write("exit_early")
    sys.exit(3)


def ask_again(retries: int) -> Retry:
    """Asks for a retry each time."""
    ledger.write("ask_again")
    return Retry(max=retries)


def ask_once(marker: str, interval: int = 0) -> Retry | str:
    """Asks for a retry by its return value, once."""
    ledger.write("ask_once")
    if not os.path.exists(marker):  # noqa: PTH110 - a marker file
        with open(marker, "w"):  # noqa: PTH123 - as above
            return Retry(max=2, interval=interval)
    return "done"


def fail_once(marker: str) -> None:
    ledger.write("fail_once")
    if not os.path.exists(marker):  # noqa: PTH110 - a marker file
        with open(marker, "w"):  # noqa: PTH123 - as above
            raise Gone("on purpose")


def kill_itself() -> None:
    ledger.write("kill_itself")
    os.kill(os.getpid(), signal.SIGKILL)


def leave(code: int) -> None:
    ledger.write("leave")
    os._exit(code)


def eat_memory() -> bytes:
    """Meets a memory limit."""
    ledger.write("eat_memory")
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2**30, limits[1]))
    try:
        return bytes(2**31)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def fill_memory(mebibytes: int) -> None:
    """Touches so much memory, and is killed then, as an OOM killer would."""
    ledger.write("fill_memory")
    held = bytearray(mebibytes * 2**20)
    held[::4096] = b"x" * len(held[::4096])
    os.kill(os.getpid(), signal.SIGKILL)


def overrun() -> None:
    ledger.write("overrun")
    time.sleep(60)


def swallow_timeout() -> None:
    """Goes on after its timeout."""
    ledger.write("swallow_timeout")
    while True:
        try:
            time.sleep(60)
        except Exception:  # noqa: BLE001 - what jobs do
            continue


def give_unpicklable() -> object:
    ledger.write("give_unpicklable")
    return lambda: None


def burn(seconds: float) -> None:
    """Uses the processor for so long, half of it in a child process."""
    ledger.write("burn")
    code = f"import time\nwhile time.process_time() < {seconds / 2}: pass"
    subprocess.run([sys.executable, "-c", code], check=True)
    end = time.process_time() + seconds / 2
    while time.process_time() < end:
        pass


def callback_raises(*_: Any) -> None:
    raise Gone("in a callback")


class Things:
    """A method as a job."""

    def do(self) -> None:
        ledger.write("do")
