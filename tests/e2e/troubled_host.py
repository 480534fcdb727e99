"""A process with every problem of a registry directory: `python -m tests.e2e.troubled_host`.

Its directory holds few series (JOBMETRICS_MAX_SERIES) and it asks for more, it records values that are not numbers, its
own code makes an error inside a guard, and a file there is damaged. It ends when its standard input does.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from jobmetrics import Counter, guard, timed_job

# A label with too many values; a second one, since one metric gets at most half of all series.
ORDERS = Counter("host_orders", "Orders by customer.", ["customer"])
RETURNS = Counter("host_returns", "Returns by customer.", ["customer"])
NUMBERS = Counter("host_numbers", "Values that may not be numbers.")
CUSTOMERS = 600


@timed_job
def work(customer: int) -> None:
    ORDERS.labels(str(customer)).inc()
    RETURNS.labels(str(customer)).inc()
    NUMBERS.inc(float("nan"))
    _break()


@guard.guarded("a test")
def _break() -> None:
    raise RuntimeError("on purpose")


def main() -> None:
    for customer in range(CUSTOMERS):
        work(customer)
    directory = Path(os.environ["JOBMETRICS_DIR"])
    (directory / "slot-00099").write_bytes(b"no slot")
    print("recorded", flush=True)
    for _ in sys.stdin:  # a job per line, so that the updates dropped in the last one are reported
        work(0)


if __name__ == "__main__":
    main()
