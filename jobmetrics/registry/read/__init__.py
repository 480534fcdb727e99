"""The read side: what the exporter reads from a registry directory. Workers import none of it."""

from __future__ import annotations

from jobmetrics.registry.read.slot_reader import RunningJobs, Sample
from jobmetrics.registry.read.snapshot import Snapshot, SnapshotReader

__all__ = ["RunningJobs", "Sample", "Snapshot", "SnapshotReader"]
