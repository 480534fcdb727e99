"""The jobs of the RQ integration tests: they write a ledger and end in every way a job can."""

from __future__ import annotations

import os
import signal
import time

from rq import Retry

from tests.integration import ledger


def succeed(seconds: float = 0.0) -> str:
    ledger.write("start")
    time.sleep(seconds)
    ledger.write("success")
    return "done"


def count() -> None:
    ledger.write("success")


def fail() -> None:
    ledger.write("failure")
    raise ValueError("on purpose")


def ask_again(marker: str) -> Retry | str:
    """Asks for a retry by its return value, once."""
    if not os.path.exists(marker):  # noqa: PTH110 - a marker file
        with open(marker, "w"):  # noqa: PTH123 - as above
            ledger.write("retry")
        return Retry(max=2)
    ledger.write("success")
    return "done"


def kill_itself() -> None:
    ledger.write("killed")
    os.kill(os.getpid(), signal.SIGKILL)
