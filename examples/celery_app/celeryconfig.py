"""Celery's settings. The broker may also be named by CELERY_BROKER_URL, which Celery reads itself."""

from __future__ import annotations

imports = ("jobmetrics.celery.plugin", "celery_app.tasks")

broker_url = "redis://localhost:6379/0"
broker_connection_retry_on_startup = True
task_ignore_result = True
task_routes = {
    "celery_app.tasks.compress_file": "archives",
    "celery_app.tasks.check_archive": "archives",
}
beat_sync_every = 1  # the schedule is saved each time a task is sent: a crash forgets nothing
beat_schedule = {
    "clean up": {"task": "celery_app.tasks.clean_up", "schedule": 30.0, "args": (300.0,)},
}
