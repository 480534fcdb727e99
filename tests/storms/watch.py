"""Checks during a storm and after it."""

from __future__ import annotations

from pathlib import Path

from jobmetrics.errors import RegistryError
from tests.storms.update_ledger import UpdateLedger
from tests.support import readings

HISTOGRAM = "storm_sizes"
FAMILIES = ("storm_updates_total", "storm_parts_total", HISTOGRAM)


class Watch:
    """Scrape, and assert that no total ever falls.

    A histogram falls once if a newer release has other buckets: its declaration wins, and the counts of the older one
    are no longer shown.

    Args:
        path: The registry directory.
        deploy: Whether a newer release with other buckets is in the storm.
    """

    def __init__(self, path: Path, *, deploy: bool) -> None:
        self._path = path
        self._may_fall = {HISTOGRAM} if deploy else set()
        self._before: dict[str, float] = {}
        self.scrapes = 0

    def begins(self) -> bool:
        """Whether there is something to read."""
        try:
            self.look()
        except (OSError, RegistryError):
            return False
        return True

    def look(self) -> None:
        now = totals(self._path)
        for name, before in self._before.items():
            if now.get(name, 0.0) < before:
                assert name in self._may_fall, f"{name} fell from {before} to {now.get(name)}"
                self._may_fall.remove(name)
        self._before = now
        self.scrapes += 1


def totals(path: Path) -> dict[str, float]:
    """The totals in the directory, by family."""
    found: dict[str, float] = {}
    for family, samples in readings.snapshot(path).families:
        if family.name in FAMILIES:
            values = (sum(sample.buckets) if sample.buckets else sample.value for sample in samples)
            found[family.name] = found.get(family.name, 0.0) + sum(values)
    return found


def reconcile(path: Path, ledger: UpdateLedger, *, deploy: bool) -> None:
    """Compare each total with the ledger. deploy: as in `Watch`."""
    dropped = sum(readings.values(path, "jobmetrics_dropped_updates_total").values())
    found = totals(path)
    assert len(found) == len(FAMILIES), found
    for name, counted in found.items():
        if deploy and name == HISTOGRAM:
            assert 0 < counted <= ledger.begun, f"{counted} sizes of {ledger.begun} updates: invented"
        else:
            ledger.assert_agrees(counted, dropped, what=name)
