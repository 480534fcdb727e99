"""Storms of one kind each, for STORM_SECONDS (10). STORM_SEED repeats one; each prints its seed.

The ledger is in memory that the parent shares with each process, so it survives a SIGKILL.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.storms import processes
from tests.storms.processes import Storm, storm
from tests.storms.update_ledger import Account, UpdateLedger
from tests.storms.watch import Watch, reconcile
from tests.support import readings

SECONDS = float(os.environ.get("STORM_SECONDS", "10"))
SIZE = 8  # processes at one time

pytestmark = [pytest.mark.full, pytest.mark.timeout(int(SECONDS) * 10 + 120)]

Kind = Callable[[Path, Account, random.Random], None]


def blow(raging: Storm, watch: Watch, kinds: tuple[Kind, ...], chance: random.Random) -> None:
    """Kill and replace processes at random times until the time is over."""
    for n in range(SIZE):
        raging.start(kinds[n % len(kinds)])
    readings.until(watch.begins, "the first process to record")
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        time.sleep(chance.choice([0.0, 0.001, 0.01, 0.05]))
        raging.kill_one()
        raging.start(chance.choice(kinds))
        watch.look()


def rage(kinds: tuple[Kind, ...], path: Path, chance: random.Random) -> None:
    deploy = processes.deployed in kinds and len(kinds) > 1
    ledger, watch = UpdateLedger(), Watch(path, deploy=deploy)
    with storm(path, chance, ledger) as raging:
        blow(raging, watch, kinds, chance)
    reconcile(path, ledger, deploy=deploy)
    print(f"{watch.scrapes} scrapes, {len(ledger.accounts)} processes")


@pytest.mark.parametrize("kind", processes.KINDS, ids=lambda kind: kind.__name__)
def test_a_storm(kind: Kind, chance: random.Random, registry_dir: Path) -> None:
    if kind is processes.in_namespaces and not processes.may_make_namespaces():
        pytest.skip("pid and user namespaces are not allowed here")
    rage((kind,), registry_dir, chance)


def test_all_storms_at_once(chance: random.Random, registry_dir: Path) -> None:
    allowed = processes.may_make_namespaces()
    rage(
        tuple(kind for kind in processes.KINDS if allowed or kind is not processes.in_namespaces), registry_dir, chance
    )
