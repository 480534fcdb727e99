"""Keep errors of jobmetrics from jobs: each error is counted, and logged at most once a minute.

With the setting `propagate_errors`, for tests, errors are raised instead.
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
    """The errors that were kept from jobs.

    counts: by place, in the process with the pid counted_by. let_through: exception classes that are always raised.
    """

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.counted_by = os.getpid()
        self.log = ThrottledLog()
        self.let_through: tuple[type[BaseException], ...] = ()


def let_through(*classes: type[BaseException]) -> None:
    """Register exception classes that are always raised into the job.

    A job system raises its time limits from a signal handler, which may interrupt code of jobmetrics. If such an
    exception were swallowed, the job would run past its limit.
    """
    errors = runtime.state(Errors)
    errors.let_through = tuple(dict.fromkeys((*errors.let_through, *classes)))


def passes(error: BaseException) -> bool:
    """Whether an exception belongs to the job and must be raised."""
    return isinstance(error, runtime.state(Errors).let_through)


def note(where: str, error: BaseException) -> None:
    """Count an error that was kept from a job, and log it at most once a minute for each place.

    Args:
        where: The place, the label `where` of `jobmetrics_internal_errors_total`.
        error: The error.

    Raises:
        BaseException: The error itself, if `propagate_errors` is on or the error belongs to the job.
    """
    if passes(error) or _propagates():
        raise error
    count(where)
    message = "jobmetrics: error in %s, the job is not affected: %s: %s"
    if runtime.state(Errors).log.warning(where, message, where, type(error).__name__, error):
        logger.debug("jobmetrics: details of the error in %s", where, exc_info=error)


def count(where: str) -> None:
    """Count an error by its place. The caller logs it."""
    counts = _own_counts()
    counts[where] = counts.get(where, 0) + 1


def guarded(where: str) -> Callable[[Callable[P, R]], Callable[P, R | None]]:
    """Decorate a function: an Exception is counted and logged, and the function returns None instead of raising it.

    Args:
        where: The place, the label `where` of `jobmetrics_internal_errors_total`.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R | None]:
        @functools.wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R | None:
            try:
                return function(*args, **kwargs)
            except Exception as error:  # noqa: BLE001 - this is the place that catches everything
                note(where, error)
                return None

        return call

    return decorate


def take_counts() -> dict[str, int]:
    """Return the error counts by place since the last call. The caller records them."""
    counts, taken = _own_counts(), {}
    for where in list(counts):
        taken[where] = counts.pop(where, 0)
    return taken


def _own_counts() -> dict[str, int]:
    """Return the counts of this process. A forked child starts with none, because its parent records the rest.

    A fork hook would copy a memory page in each child, and a fork in C calls no hooks.
    """
    errors, pid = runtime.state(Errors), os.getpid()
    if pid != errors.counted_by:
        errors.counts.clear()
        errors.counted_by = pid
    return errors.counts


def _propagates() -> bool:
    active_settings = settings.peek()  # peek, because reading the settings here could raise
    return active_settings is not None and active_settings.propagate_errors
