"""The jobs of the RQ integration tests: each writes its name once per execution, and each ends in another way."""

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

from tests.integration import execution_ledger


class Gone(Exception):
    """Raised by some jobs."""


class Unreadable:
    """An object that cannot be unpickled."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return int, ("no number",)


class Deadly:
    """An object that kills the process that unpickles it."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return _die, ()


def _die() -> None:
    execution_ledger.write("deadly")
    os.kill(os.getpid(), signal.SIGKILL)


def count(*_: object) -> None:
    execution_ledger.write("count")


def succeed(seconds: float = 0.0) -> str:
    execution_ledger.write("succeed")
    time.sleep(seconds)
    return "done"


def succeed_when_released(marker: str) -> None:
    """Wait for a file."""
    execution_ledger.write("succeed_when_released")
    while not os.path.exists(marker):  # noqa: PTH110 - a marker file
        time.sleep(0.02)


def fork_and_fall_through() -> None:
    """The forked child also returns from this function, and exits soon after."""
    execution_ledger.write("fork_and_fall_through")
    child = os.fork()
    if child:
        os.waitpid(child, 0)
    else:
        sys.exit(0)


def fail() -> None:
    execution_ledger.write("fail")
    raise Gone("on purpose")


def exit_early() -> None:
    execution_ledger.write("exit_early")
    sys.exit(3)


def ask_again(retries: int) -> Retry:
    """Request a retry each time."""
    execution_ledger.write("ask_again")
    return Retry(max=retries)


def ask_once(marker: str, interval: int = 0) -> Retry | str:
    """Request a retry by the return value, once."""
    execution_ledger.write("ask_once")
    if not os.path.exists(marker):  # noqa: PTH110 - a marker file
        with open(marker, "w"):  # noqa: PTH123 - as above
            return Retry(max=2, interval=interval)
    return "done"


def fail_once(marker: str) -> None:
    execution_ledger.write("fail_once")
    if not os.path.exists(marker):  # noqa: PTH110 - a marker file
        with open(marker, "w"):  # noqa: PTH123 - as above
            raise Gone("on purpose")


def kill_itself() -> None:
    execution_ledger.write("kill_itself")
    os.kill(os.getpid(), signal.SIGKILL)


def leave(code: int) -> None:
    execution_ledger.write("leave")
    os._exit(code)


def eat_memory() -> bytes:
    """Exceed a memory limit."""
    execution_ledger.write("eat_memory")
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (2**30, limits[1]))
    try:
        return bytes(2**31)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def fill_memory(mebibytes: int) -> None:
    """Touch this many mebibytes, then be killed as by an OOM killer."""
    execution_ledger.write("fill_memory")
    held = bytearray(mebibytes * 2**20)
    held[::4096] = b"x" * len(held[::4096])
    os.kill(os.getpid(), signal.SIGKILL)


def overrun() -> None:
    execution_ledger.write("overrun")
    time.sleep(60)


def swallow_timeout() -> None:
    """Continue after the timeout."""
    execution_ledger.write("swallow_timeout")
    while True:
        try:
            time.sleep(60)
        except Exception:  # noqa: BLE001 - what jobs do
            continue


def give_unpicklable() -> object:
    execution_ledger.write("give_unpicklable")
    return lambda: None


def burn(seconds: float) -> None:
    """Use the processor for some seconds, half of them in a child process."""
    execution_ledger.write("burn")
    code = f"import time\nwhile time.process_time() < {seconds / 2}: pass"
    subprocess.run([sys.executable, "-c", code], check=True)
    end = time.process_time() + seconds / 2
    while time.process_time() < end:
        pass


def callback_raises(*_: Any) -> None:
    raise Gone("in a callback")


class Things:
    """A class with a method that is a job."""

    def do(self) -> None:
        execution_ledger.write("do")
