"""A producer, `python -m celery_app.produce`. It is instrumented as in a web process that publishes tasks."""

from __future__ import annotations

import sys

from celery_app import app, tasks
from jobmetrics.celery import instrument
from shop.orders import Order
from shop.producing import produce


def send(order: Order) -> None:
    """Publish one task."""
    getattr(tasks, order.job).delay(*order.arguments)


if __name__ == "__main__":
    instrument(app)
    sys.exit(produce(send))
