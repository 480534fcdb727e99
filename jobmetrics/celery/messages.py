"""The queue of a task's message, and when the task could have run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timezone
from math import isfinite
from typing import Any

from jobmetrics.celery import SYSTEM
from jobmetrics.integration import Job

PUBLISHED_AT = "jobmetrics_published_at"  # header: epoch seconds, as text so that every serializer carries it
UNKNOWN_QUEUE = "unknown"
UNKNOWN_TASK = "unknown"  # the job type of all messages that name an unknown task

_ROUTES = "_jobmetrics_routes"  # attribute of an app: its queues by exchange and routing key

# RabbitMQ delays messages to quorum queues in 28 levels of delay queues. kombu writes the path through them before the
# routing key. It stays there, and differs for each countdown.
_DELAYED = re.compile(r"(?:[01]\.){28}")


def queue_name(app: Any, exchange: str | None, routing_key: str | None) -> str:
    """Return the queue of a message.

    With the default exchange ('') the routing key is the queue. Otherwise the route is looked up in the app's queues.
    """
    exchange, routing_key = exchange or "", routing_key or ""
    if not exchange:
        return routing_key or UNKNOWN_QUEUE
    delayed = _DELAYED.match(routing_key)
    if delayed:
        exchange, routing_key = "", routing_key[delayed.end() :]  # the exchange is that of a delay queue
    if app is None:
        return routing_key or exchange
    routes: dict[tuple[str, str], str] = vars(app).setdefault(_ROUTES, {})
    known = routes.get((exchange, routing_key))
    if known is None:
        for name, queue in app.amqp.queues.items():
            if queue.routing_key == routing_key and exchange in {"", getattr(queue.exchange, "name", "")}:
                known = name
                break
        else:
            return routing_key or exchange  # not remembered: the queue may be declared later
        routes[exchange, routing_key] = known
    return known


def queue_of(app: Any, delivery: Any) -> str:
    """Return the queue in the delivery_info of a request or message."""
    if not isinstance(delivery, Mapping):
        return UNKNOWN_QUEUE
    return queue_name(app, delivery.get("exchange"), delivery.get("routing_key"))


def job_of(task: Any, request: Any) -> Job:
    """Return the job of a task's request. Its type is the task's name, because a shadow name may be any string."""
    return Job(SYSTEM, task.name, queue_of(task.app, request.delivery_info))


def ready_at(request: Any) -> float | None:
    """Return when a task could have run, in epoch seconds: when it was published, or its ETA if that is later.

    Call it for first deliveries only: a redelivery has the same timestamp.

    Returns:
        None when the producer did not add a timestamp.
    """
    published = _timestamp(getattr(request, PUBLISHED_AT, None))
    if published is None:
        published = published_at(request.headers)
    if published is None or not request.eta:
        return published
    eta = _epoch(request.eta)
    return published if eta is None else max(published, eta)


def is_redelivered(request: Any) -> bool:
    """Return whether the broker delivers the message again."""
    delivery = request.delivery_info
    return isinstance(delivery, Mapping) and bool(delivery.get("redelivered"))


def published_at(headers: Any) -> float | None:
    """Return the producer's timestamp in a message's headers, in epoch seconds; None if it is missing or invalid."""
    return _timestamp(headers.get(PUBLISHED_AT)) if isinstance(headers, Mapping) else None


def _timestamp(stamp: Any) -> float | None:
    if stamp is None:
        return None
    try:
        timestamp = float(stamp)  # the header may hold any value
    except (TypeError, ValueError, OverflowError):
        return None
    return timestamp if isfinite(timestamp) else None


def _epoch(eta: Any) -> float | None:
    """Return a message's ETA (ISO 8601) in epoch seconds. An ETA without an offset is UTC."""
    if not eta:
        return None
    try:
        at = eta if isinstance(eta, datetime) else datetime.fromisoformat(str(eta).replace("Z", "+00:00"))
        return (at if at.tzinfo else at.replace(tzinfo=timezone.utc)).timestamp()
    except (ValueError, OverflowError):
        return None
