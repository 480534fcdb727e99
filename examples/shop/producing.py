"""The command line and the loop of the producers."""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence

from shop import files, orders


def produce(send: Callable[[orders.Order], object], arguments: Sequence[str] | None = None) -> int:
    """Send rounds of jobs until --jobs are sent, or until SIGTERM or Ctrl-C; returns the exit code."""
    options = _parser().parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    sent = 0
    try:
        for order in _orders(options):
            send(order)
            sent += 1
            if sent == options.jobs:
                break
    except KeyboardInterrupt:
        pass
    finally:
        print(f"{sent} jobs sent", flush=True)
    return 0


def _orders(options: argparse.Namespace) -> Iterator[orders.Order]:
    for batch in orders.rounds(files.folder(), options.damage_every, options.trouble, options.slow_seconds):
        yield from batch
        time.sleep(options.every)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Send jobs to the workers of this example.")
    parser.add_argument("--jobs", type=int, metavar="N", help="send N jobs and end; without it, continue until Ctrl-C")
    parser.add_argument("--every", type=float, default=1.0, metavar="SECONDS", help="pause between rounds (1)")
    parser.add_argument("--damage-every", type=int, default=20, metavar="N", help="damage a file every N rounds (20)")
    parser.add_argument(
        "--trouble", action="append", default=[], choices=orders.TROUBLES, help="a job that goes wrong, in every round"
    )
    parser.add_argument("--slow-seconds", type=float, default=30.0, metavar="SECONDS", help="of --trouble slow (30)")
    return parser
