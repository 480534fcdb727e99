"""Test doubles for time and for other processes."""

from __future__ import annotations

from jobmetrics.registry.write.writer import Writer


class FakeClock:
    """A clock that the test advances."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += seconds


def die(writer: Writer) -> None:
    """The effect of the end of a writer's process on its slot."""
    slot = writer.slot
    if slot is not None and slot.is_held():
        slot.release()
