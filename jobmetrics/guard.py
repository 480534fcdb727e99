"""Nothing of ours ever raises into a job: what would is counted, and logged once a minute.

With `propagate_errors` on (our own tests) errors surface instead.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from jobmetrics import runtime, settings
from jobmetrics.log_throttle import ThrottledLog

logger = logging.getLogger("jobmetrics")

P = ParamSpec("P")
R = TypeVar("R")


class Errors:
    """Errors kept from jobs.

    counts: by place, of the process counted_by. let_through: exceptions that are the job's own.
    """

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.counted_by = os.getpid()
        self.log = ThrottledLog()
        self.let_through: tuple[type[BaseException], ...] = ()


def let_through(*classes: type[BaseException]) -> None:
    """Exceptions that are the job's own business wherever they surface.

    A job system raises its time limits from a signal handler, which may interrupt our code: swallowing
    such an exception would take the limit away from the job.
    """
    errors = runtime.state(Errors)
    errors.let_through = tuple(dict.fromkeys((*errors.let_through, *classes)))


def passes(error: BaseException) -> bool:
    """Whether an exception is the job's own business and must go on."""
    return isinstance(error, runtime.state(Errors).let_through)


def note(where: str, error: BaseException) -> None:
    """Count an error that was kept from a job, and log it at most once a minute a place.

    Raises:
        BaseException: the error itself when `propagate_errors` is on, or when it is the job's own.
    """
    if passes(error) or _propagates():
        raise error
    count(where)
    message = "jobmetrics: error in %s, the job is not affected: %s: %s"
    if runtime.state(Errors).log.warning(where, message, where, type(error).__name__, error):
        logger.debug("jobmetrics: details of the error in %s", where, exc_info=error)


def count(where: str) -> None:
    """Count an error by its place; the caller logs it."""
    counts = _own_counts()
    counts[where] = counts.get(where, 0) + 1


def guarded(where: str) -> Callable[[Callable[P, R]], Callable[P, R | None]]:
    """Make a function that never raises an Exception: it returns None instead and the error is noted."""

    def decorate(function: Callable[P, R]) -> Callable[P, R | None]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R | None:
            try:
                return function(*args, **kwargs)
            except Exception as error:  # noqa: BLE001 - this is the one place that catches all
                note(where, error)
                return None

        return call

    return decorate


def take_counts() -> dict[str, int]:
    """Errors by place since the last call; whoever takes them records them."""
    counts, taken = _own_counts(), {}
    for where in list(counts):
        taken[where] = counts.pop(where, 0)
    return taken


def _own_counts() -> dict[str, int]:
    """The counts of this process. A forked child starts with none: its parent records its own errors.

    A fork hook would cost each child a copied page, and a fork in C calls no hooks.
    """
    errors, pid = runtime.state(Errors), os.getpid()
    if pid != errors.counted_by:
        errors.counts.clear()
        errors.counted_by = pid
    return errors.counts


def _propagates() -> bool:
    active_settings = settings.peek()  # reading them here could itself raise
    return active_settings is not None and active_settings.propagate_errors
