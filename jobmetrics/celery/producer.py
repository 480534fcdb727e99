"""Producers: add a timestamp to each message before it is sent, and count the message afterwards."""

from __future__ import annotations

import time
from typing import Any

from celery import current_app
from celery.signals import after_task_publish, before_task_publish

from jobmetrics.celery import SYSTEM
from jobmetrics.celery.messages import PUBLISHED_AT, queue_name
from jobmetrics.integration import Job, Published, current_recorder, guarded

_UID = "jobmetrics.publish"


@guarded("celery publish")
def _add_timestamp(headers: dict[str, Any] | None = None, **_: Any) -> None:
    if headers is not None:
        headers[PUBLISHED_AT] = repr(time.time())  # overwritten: a retry copies the old headers


@guarded("celery publish")
def _count(
    sender: Any = None,
    exchange: Any = None,
    routing_key: str | None = None,
    headers: dict[str, Any] | None = None,
    **_: Any,
) -> None:
    if headers and headers.get("retries"):
        return  # the job was counted when it was first sent
    queue = queue_name(current_app, getattr(exchange, "name", exchange), routing_key)
    current_recorder().published(Published(Job(SYSTEM, str(sender), queue)))


def connect() -> None:
    """Connect the signal handlers."""
    before_task_publish.connect(_add_timestamp, weak=False, dispatch_uid=_UID)
    after_task_publish.connect(_count, weak=False, dispatch_uid=_UID)


def disconnect() -> None:
    """Disconnect the signal handlers."""
    before_task_publish.disconnect(dispatch_uid=_UID)
    after_task_publish.disconnect(dispatch_uid=_UID)
