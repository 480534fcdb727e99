"""Celery's settings. Celery itself reads the variable CELERY_BROKER_URL, which overrides `broker_url`."""

from __future__ import annotations

imports = ("jobmetrics.celery.plugin", "celery_app.tasks")

broker_url = "redis://localhost:6379/0"
broker_connection_retry_on_startup = True
task_ignore_result = True
task_routes = {
    "celery_app.tasks.compress_file": "archives",
    "celery_app.tasks.check_archive": "archives",
}
beat_sync_every = 1  # beat saves its schedule after each task, so a crash loses nothing
beat_schedule = {
    "clean up": {"task": "celery_app.tasks.clean_up", "schedule": 30.0, "args": (300.0,)},
}
