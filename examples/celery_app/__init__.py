"""A Celery application: `celery -A celery_app worker`. One line of `celeryconfig` turns jobmetrics on."""

from __future__ import annotations

from celery import Celery

app = Celery("celery_app")
app.config_from_object("celery_app.celeryconfig")
