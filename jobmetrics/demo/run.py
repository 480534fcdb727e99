"""`jobmetrics demo`: the entry, which needs nothing that may not be installed."""

from __future__ import annotations

import importlib.util
import math
import os
import sys

REQUIRED = ("celery", "kombu", "prometheus_client", "redis", "rich", "rq")


def main(seconds: float | None) -> int:
    """Run the demo and return the exit code.

    Args:
        seconds: How long to produce jobs. None: on a terminal until Ctrl-C, else 20 seconds.

    Returns:
        0 when what was sent, what the jobs wrote down and what /metrics says agree; 1 when they do
        not, when there was nothing to compare, and when something could not be started; 2 for a
        number of seconds that is none; 128 and the signal's number when a signal ended it.
    """
    if seconds is not None and not (math.isfinite(seconds) and seconds >= 0):
        print(f"jobmetrics demo: {seconds} is no number of seconds from 0 up", file=sys.stderr)
        return 2
    missing = [name for name in REQUIRED if importlib.util.find_spec(name) is None]
    if missing:
        print(
            f"jobmetrics demo: not installed: {', '.join(missing)}. install 'jobmetrics[all]'",
            file=sys.stderr,
        )
        return 1
    from jobmetrics.demo.performance import perform

    return perform(seconds, os.environ)
