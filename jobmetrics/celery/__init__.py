"""Celery: `instrument(app)` in code, or `imports = ("jobmetrics.celery.plugin",)` in the configuration.

This module imports no Celery: the commands load the package for its options.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobmetrics.integration import register_system

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["instrument", "uninstrument"]

SYSTEM = "celery"  # the label `system`


def instrument(app: Celery | None = None) -> None:
    """Record the tasks that Celery's workers run and producers send in this process. A second call changes nothing.

    Args:
        app: The Celery application. It is not used: Celery's signals are shared by all apps of a process.

    Example:
        >>> from celery import Celery
        >>> from jobmetrics.celery import instrument
        >>> app = Celery("shop")
        >>> instrument(app)
    """
    from jobmetrics.celery import beat, producer, signals

    register_system(SYSTEM)
    signals.connect()
    producer.connect()
    beat.connect()


def uninstrument(app: Celery | None = None) -> None:
    """Stop recording in this process.

    Args:
        app: As for `instrument`.

    Example:
        >>> from jobmetrics.celery import uninstrument
        >>> uninstrument()
    """
    from jobmetrics.celery import beat, producer, signals

    signals.disconnect()
    producer.disconnect()
    beat.disconnect()
