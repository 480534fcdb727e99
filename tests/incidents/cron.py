"""The schedule of the RQ worlds: `rq cron tests.incidents.cron`."""

from __future__ import annotations

from rq import cron

from tests.incidents import jobs

cron.register(jobs.tidy, queue_name="mail", interval=20)
