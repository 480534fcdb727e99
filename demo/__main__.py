"""`python -m demo`, with DEMO_SECONDS and REDIS_URL from the environment."""

from __future__ import annotations

import math
import os
import signal
import sys
from collections.abc import Mapping

BAD_INPUT = 2


def main(environment: Mapping[str, str]) -> int:
    """Run the demo.

    Args:
        environment: DEMO_SECONDS is the time to send jobs, in seconds. If it is empty, the demo sends jobs until Ctrl-C
            on a terminal, else for 20 seconds. REDIS_URL names a Redis to use instead of a private one.

    Returns:
        0 if what was sent, what the jobs wrote down and what /metrics shows agree; 1 if they differ, if no job ran, or
        if something did not start; 2 for bad input; 128 and the signal's number if a signal ended it.
    """
    try:
        seconds = seconds_of(environment.get("DEMO_SECONDS", ""))
    except ValueError as error:
        return _complain(str(error))
    try:
        from demo.runner import run
    except ModuleNotFoundError as error:
        _complain(f"{error.name} is not installed; make demo installs everything")
        return 1
    except ValueError as error:  # RQ 3 refuses a bad RQ_KEY_PREFIX while it is imported
        return _complain(f"RQ cannot be imported: {error}")
    except KeyboardInterrupt:
        _complain("ended by SIGINT")
        return 128 + signal.SIGINT
    return run(seconds, environment)


def seconds_of(text: str) -> float | None:
    """DEMO_SECONDS as a number; None if it is empty.

    Raises:
        ValueError: If it is not a number of seconds, 0 or more.
    """
    if not text:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        raise ValueError(f"DEMO_SECONDS={text!r} is not allowed; it takes a number of seconds from 0 up")
    return seconds


def _complain(message: str) -> int:
    print(f"demo: {message}", file=sys.stderr)
    return BAD_INPUT


if __name__ == "__main__":
    sys.exit(main(os.environ))
