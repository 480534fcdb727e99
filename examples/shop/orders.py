"""What a producer asks the workers for, round by round, the same for every job system."""

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
    """Rounds of orders without end, with files in `folder`.

    Args:
        folder: Where the files are made.
        damage_every: One file is damaged in this number of rounds, a different kind each time.
        troubles: What else is to go wrong, in every round; of TROUBLES.
        slow_seconds: How long a slow job takes.
    """
    kinds = cycle(("orders", "archive", "delivery"))
    for number in count(1):
        damaged = next(kinds) if number % damage_every == 0 else ""
        yield _round(folder, damaged) + [_trouble(trouble, folder, slow_seconds) for trouble in troubles]


def _round(folder: Path, damaged: str) -> list[Order]:
    # The verification comes before its delivery, so that at first it finds the file missing or half there.
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
