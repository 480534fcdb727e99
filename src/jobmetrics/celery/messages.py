"""What a task's message tells: its queue, and when it could have run."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime, timezone
from math import isfinite
from typing import Any

PUBLISHED_AT = "jobmetrics_published_at"  # header: epoch seconds, as text so that every serializer carries it
UNKNOWN_QUEUE = "unknown"

_routes: dict[tuple[int, str, str], str] = {}  # by app, exchange and routing key


def queue_name(app: Any, exchange: str | None, routing_key: str | None) -> str:
    """The queue a message came through or goes to.

    The routing key is the queue only for direct delivery (exchange ''); otherwise the app's queues tell.
    """
    exchange, routing_key = exchange or "", routing_key or ""
    if not exchange:
        return routing_key or UNKNOWN_QUEUE
    route = (id(app), exchange, routing_key)
    known = _routes.get(route)
    if known is None:
        for name, queue in app.amqp.queues.items():
            if getattr(queue.exchange, "name", "") == exchange and queue.routing_key == routing_key:
                known = name
                break
        else:
            return routing_key or exchange  # not kept: the queue may be declared later
        _routes[route] = known
    return known


def ready_at(request: Any) -> float | None:
    """When a task could have run: its publish, or its ETA if that is later, in epoch seconds.

    None when no producer stamped it, and for a redelivery, whose stamp tells of the first delivery.
    """
    delivery = request.delivery_info
    if isinstance(delivery, Mapping) and delivery.get("redelivered"):
        return None
    stamp = getattr(request, PUBLISHED_AT, None)
    if stamp is None and isinstance(request.headers, Mapping):
        stamp = request.headers.get(PUBLISHED_AT)
    try:
        published = float(stamp)  # type: ignore[arg-type]  # a stranger's header may hold anything
    except (TypeError, ValueError, OverflowError):
        return None
    if not isfinite(published):
        return None
    eta = _epoch(request.eta)
    return published if eta is None else max(published, eta)


def _epoch(eta: Any) -> float | None:
    """An ETA as the message carries it (ISO 8601) in epoch seconds; without an offset it is UTC."""
    if not eta:
        return None
    try:
        moment = eta if isinstance(eta, datetime) else datetime.fromisoformat(str(eta).replace("Z", "+00:00"))
        return (moment if moment.tzinfo else moment.replace(tzinfo=timezone.utc)).timestamp()
    except (ValueError, OverflowError):
        return None
