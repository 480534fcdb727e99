"""The producer's side: stamp each message with the moment it is sent, and count it once it is."""

from __future__ import annotations

import time
from typing import Any

from celery import current_app
from celery.signals import after_task_publish, before_task_publish

from jobmetrics import recorder
from jobmetrics.celery.messages import PUBLISHED_AT, SYSTEM, queue_name
from jobmetrics.events import Job, Published
from jobmetrics.guard import guarded

_UID = "jobmetrics.publish"


@guarded("celery publish")
def _stamp(headers: dict[str, Any] | None = None, **_: Any) -> None:
    if headers is not None:
        headers[PUBLISHED_AT] = repr(time.time())  # assigned: a retry copies the old headers on


@guarded("celery publish")
def _count(
    sender: Any = None,
    exchange: Any = None,
    routing_key: str | None = None,
    headers: dict[str, Any] | None = None,
    **_: Any,
) -> None:
    if headers and headers.get("retries"):
        return  # another attempt at a job that was counted when it was first sent
    queue = queue_name(current_app, getattr(exchange, "name", exchange), routing_key)
    recorder.default().published(Published(Job(SYSTEM, str(sender), queue)))


def connect() -> None:
    """Begin to stamp and count."""
    before_task_publish.connect(_stamp, weak=False, dispatch_uid=_UID)
    after_task_publish.connect(_count, weak=False, dispatch_uid=_UID)


def disconnect() -> None:
    """Stop it."""
    before_task_publish.disconnect(dispatch_uid=_UID)
    after_task_publish.disconnect(dispatch_uid=_UID)
