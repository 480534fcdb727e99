"""The scheduled jobs, for `rq cron rq_app.cron`."""

from __future__ import annotations

from rq import cron

from rq_app import jobs

cron.register(jobs.clean_up, queue_name="default", args=(300.0,), interval=30)
