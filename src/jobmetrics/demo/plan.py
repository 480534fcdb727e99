"""What the producer asks for, round by round, the same for every job system."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, cycle
from pathlib import Path

from jobmetrics.demo.materials import Materials


@dataclass(frozen=True)
class Order:
    """One job: the name of a function of `jobs` and its arguments."""

    job: str
    arguments: tuple[str, ...]
    retries: bool = False


def rounds(materials: Materials, folder: Path) -> Iterator[list[Order]]:
    """Rounds of orders without end; what the jobs make goes to `folder`.

    In every fourth round one kind of input is damaged, a different kind each: a source file, an
    archive, a delivery. The verification comes before its delivery, so that it finds the file missing
    or half there at first.
    """
    folder.mkdir(parents=True, exist_ok=True)
    sources, damaged_sources = cycle(materials.sources), cycle(materials.damaged_sources)
    archives, damaged_archives = cycle(materials.archives), cycle(materials.damaged_archives)
    parcels, damaged_parcels = cycle(materials.parcels), cycle(materials.damaged_parcels)
    for number in count():
        source = next(sources)
        parcel = next(damaged_parcels if number % 4 == 2 else parcels)
        target = str(folder / f"delivery-{number}")
        yield [
            Order("verify_delivery", (target, parcel.digest), retries=True),
            Order("hash_file", (source,)),
            Order("deliver_file", (parcel.path, target)),
            Order("parse_source", (next(damaged_sources if number % 4 == 1 else sources),)),
            Order("compress_file", (source, str(folder / f"{Path(source).name}.gz"))),
            Order("decompress_file", (next(damaged_archives if number % 4 == 3 else archives),)),
        ]
