"""The queue of a task's message, and when the task could have run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime, timezone
from math import isfinite
from typing import Any

from jobmetrics import runtime
from jobmetrics.events import Job

PUBLISHED_AT = "jobmetrics_published_at"  # header: epoch seconds, as text so that every serializer carries it
SYSTEM = "celery"
UNKNOWN_QUEUE = "unknown"
UNKNOWN_TASK = "unknown"  # the one job type of messages that name no task we know

# RabbitMQ keeps what has an ETA for a quorum queue in 28 levels of other queues: kombu writes the way through them
# before the routing key, where it stays, different for each countdown.
_DELAYED = re.compile(r"(?:[01]\.){28}")


class Routes:
    """The queues that apps' routes lead to: by the app's id, exchange and routing key."""

    def __init__(self) -> None:
        self.queues: dict[tuple[int, str, str], str] = {}


def queue_name(app: Any, exchange: str | None, routing_key: str | None) -> str:
    """The queue a message came through or goes to.

    The routing key is the queue only for direct delivery (exchange ''); otherwise it is looked up in the app's queues.
    """
    exchange, routing_key = exchange or "", routing_key or ""
    if not exchange:
        return routing_key or UNKNOWN_QUEUE
    delayed = _DELAYED.match(routing_key)
    if delayed:
        exchange, routing_key = "", routing_key[delayed.end() :]  # the exchange is one of the levels'
    route = (id(app), exchange, routing_key)
    queues = runtime.state(Routes).queues
    known = queues.get(route)
    if known is None:
        for name, queue in app.amqp.queues.items() if app is not None else ():
            if queue.routing_key == routing_key and exchange in {"", getattr(queue.exchange, "name", "")}:
                known = name
                break
        else:
            return routing_key or exchange  # not kept: the queue may be declared later
        queues[route] = known
    return known


def queue_of(app: Any, delivery: Any) -> str:
    """The queue in a request's or message's delivery_info."""
    if not isinstance(delivery, Mapping):
        return UNKNOWN_QUEUE
    return queue_name(app, delivery.get("exchange"), delivery.get("routing_key"))


def job_of(task: Any, request: Any) -> Job:
    """The job of a task's request. Its type is the task's own name: a shadow name may be any string."""
    return Job(SYSTEM, task.name, queue_of(task.app, request.delivery_info))


def ready_at(request: Any) -> float | None:
    """When a task could have run: its publish, or its ETA if that is later, in epoch seconds.

    None when no producer stamped it. To be asked of a first delivery: a redelivery has the same stamp.
    """
    published = _moment(getattr(request, PUBLISHED_AT, None))
    if published is None:
        published = published_at(request.headers)
    if published is None or not request.eta:
        return published
    eta = _epoch(request.eta)
    return published if eta is None else max(published, eta)


def is_redelivered(request: Any) -> bool:
    """Whether the broker delivers the message again."""
    delivery = request.delivery_info
    return isinstance(delivery, Mapping) and bool(delivery.get("redelivered"))


def published_at(headers: Any) -> float | None:
    """The moment that a producer stamped on a message's headers, in epoch seconds; None when it did not."""
    return _moment(headers.get(PUBLISHED_AT)) if isinstance(headers, Mapping) else None


def _moment(stamp: Any) -> float | None:
    if stamp is None:
        return None
    try:
        moment = float(stamp)  # a stranger's header may hold anything
    except (TypeError, ValueError, OverflowError):
        return None
    return moment if isfinite(moment) else None


def _epoch(eta: Any) -> float | None:
    """An ETA as the message carries it (ISO 8601) in epoch seconds; without an offset it is UTC."""
    if not eta:
        return None
    try:
        moment = eta if isinstance(eta, datetime) else datetime.fromisoformat(str(eta).replace("Z", "+00:00"))
        return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
    except (ValueError, OverflowError):
        return None
