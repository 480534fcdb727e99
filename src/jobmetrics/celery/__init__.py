"""Celery: `instrument(app)` in code, or `imports = ("jobmetrics.celery.plugin",)` in the configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from jobmetrics.celery import beat, publish, signals

if TYPE_CHECKING:
    from celery import Celery

__all__ = ["instrument", "uninstrument"]


def instrument(app: Celery | None = None) -> None:
    """Record what Celery's workers and producers in this process do. Calling it again changes nothing.

    Celery's signals are the process's, not an app's: `app` is taken for the reader's sake.
    """
    signals.connect()
    publish.connect()
    beat.connect()


def uninstrument(app: Celery | None = None) -> None:
    """Stop recording in this process."""
    signals.disconnect()
    publish.disconnect()
    beat.disconnect()
