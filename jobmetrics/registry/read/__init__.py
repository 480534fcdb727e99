"""The read side: the exporter's snapshots of a registry directory. Workers do not import it."""

from __future__ import annotations

from jobmetrics.registry.read.slot_reader import RunningExecution, RunningJobs, Sample
from jobmetrics.registry.read.snapshot import Snapshot, SnapshotReader

__all__ = ["RunningExecution", "RunningJobs", "Sample", "Snapshot", "SnapshotReader"]
