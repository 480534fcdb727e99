"""A minimal Django project with RQ queues: its settings, and its manage.py when run as a module."""

from __future__ import annotations

import os
import sys

SECRET_KEY = "for tests"
USE_TZ = True
INSTALLED_APPS = ["django_rq"]
DATABASES: dict[str, object] = {}
RQ_QUEUES = {
    "jobs": {"URL": os.environ.get("DJANGO_REDIS_URL", "redis://127.0.0.1:6379/0"), "DEFAULT_TIMEOUT": 60},
}
RQ = {"WORKER_CLASS": "jobmetrics.rq.Worker"}

if __name__ == "__main__":
    from django.core.management import execute_from_command_line  # type: ignore[import-untyped]  # Django ships no types

    os.environ["DJANGO_SETTINGS_MODULE"] = "tests.integration.django_project"
    execute_from_command_line(sys.argv)
