"""The jobs that a producer sends, in rounds, for any job system."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count, cycle
from pathlib import Path

from shop import files

FAILURES, SLOW, RETRIES, CRASHES = "failures", "slow", "retries", "crashes"
TROUBLES = (FAILURES, SLOW, RETRIES, CRASHES)


@dataclass(frozen=True)
class Order:
    """One job: the name of a function of `work` and its arguments."""

    job: str
    arguments: tuple[str | float, ...]


def rounds(
    folder: Path, damage_every: int = 20, troubles: Sequence[str] = (), slow_seconds: float = 30.0
) -> Iterator[list[Order]]:
    """Make rounds of orders without end.

    Args:
        folder: The folder for the files.
        damage_every: One round in this number has a damaged file, of a different kind each time.
        troubles: Jobs that go wrong, added to every round; members of TROUBLES.
        slow_seconds: The run time of a slow job, in seconds.
    """
    kinds = cycle(("orders", "archive", "delivery"))
    for number in count(1):
        damaged = next(kinds) if number % damage_every == 0 else ""
        yield _round(folder, damaged) + [_trouble(trouble, folder, slow_seconds) for trouble in troubles]


def _round(folder: Path, damaged: str) -> list[Order]:
    # The verification is sent before the delivery, so that its first attempts find the file missing or incomplete.
    name = uuid.uuid4().hex
    orders = files.write_orders(folder / f"{name}.csv", damaged=damaged == "orders")
    old = files.write_archive(folder / f"{name}-old.gz", orders.read_bytes(), damaged=damaged == "archive")
    delivery = str(folder / f"{name}-delivered.csv")
    return [
        Order("verify_delivery", (delivery, files.digest(old if damaged == "delivery" else orders))),
        Order("import_orders", (str(orders),)),
        Order("deliver_file", (str(orders), delivery)),
        Order("compress_file", (str(orders), str(folder / f"{name}.gz"))),
        Order("check_archive", (str(old),)),
    ]


def _trouble(trouble: str, folder: Path, slow_seconds: float) -> Order:
    if trouble == FAILURES:
        return Order("import_orders", (str(files.write_orders(folder / f"{uuid.uuid4().hex}.csv", damaged=True)),))
    if trouble == SLOW:
        return Order("call_partner", (slow_seconds,))
    if trouble == RETRIES:
        return Order("verify_delivery", (str(folder / "never-delivered.csv"), ""))
    return Order("exhaust_memory", ())
