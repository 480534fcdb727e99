"""What can end the demo before it has anything to compare."""

from __future__ import annotations

from jobmetrics.errors import JobmetricsError


class DemoError(JobmetricsError):
    """The demo cannot go on; the message is for the person who started it."""


class Interrupted(Exception):
    """A signal asked the demo to end."""

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum
