"""A real celery beat: what it sends, when, and what remains for alerts after it has died."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from tests.integration.processes import process
from tests.support.readings import until, values

LAST_SENT, NEXT_DUE = "jobs_schedule_last_sent_timestamp_seconds", "jobs_schedule_next_due_timestamp_seconds"
LATENESS = "jobs_schedule_lateness_seconds"
OFTEN, RARELY = ("celery", "often"), ("celery", "rarely")

APP = """
from celery import Celery
app = Celery("beaten")
app.conf.update(
    imports=("jobmetrics.celery.plugin",),
    beat_schedule={
        "often": {"task": "a.task", "schedule": 0.2},
        "rarely": {"task": "another.task", "schedule": 3600.0},
    },
)
"""


def test_each_entry_shows_its_last_and_next_send_time(redis_url: str, registry_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "beaten.py").write_text(APP)
    environment = {"CELERY_BROKER_URL": redis_url, "JOBMETRICS_DIR": str(registry_dir), "PYTHONPATH": str(tmp_path)}
    environment["JOBMETRICS_PROPAGATE_ERRORS"] = "1"
    before = time.time()
    command = [sys.executable, "-m", "celery", "-A", "beaten", "beat", "--schedule", str(tmp_path / "schedule")]
    with process(command, tmp_path / "log", **environment) as beat:
        until(lambda: values(registry_dir, NEXT_DUE).keys() >= {OFTEN, RARELY}, "both entries")
        due = values(registry_dir, NEXT_DUE)
        assert before + 3590 < due[RARELY] < time.time() + 3610
        until(lambda: OFTEN in values(registry_dir, LAST_SENT), "the first send")
        first = values(registry_dir, LAST_SENT)[OFTEN]
        until(lambda: values(registry_dir, LAST_SENT)[OFTEN] > first, "another send")
        beat.kill()
        beat.wait()
    after = time.time()
    sent, due = values(registry_dir, LAST_SENT), values(registry_dir, NEXT_DUE)
    assert sent.keys() == {OFTEN}
    assert before < sent[OFTEN] < after
    assert sent[OFTEN] <= due[OFTEN] <= sent[OFTEN] + 1, "the next send time of a dead beat does not move"
    assert 0 <= values(registry_dir, LATENESS).get(OFTEN, 0.0) < 30
    assert values(registry_dir, "jobs_published_total")[("celery", "a.task", "celery")] >= 2
    assert "Traceback" not in (tmp_path / "log").read_text()


def test_a_task_that_the_broker_refused_is_not_sent(registry_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "beaten.py").write_text(APP)
    environment = {
        "CELERY_BROKER_URL": "redis://127.0.0.1:1/0",
        "JOBMETRICS_DIR": str(registry_dir),
        "PYTHONPATH": str(tmp_path),
    }
    command = [sys.executable, "-m", "celery", "-A", "beaten", "beat", "--schedule", str(tmp_path / "schedule")]
    with process(command, tmp_path / "log", **environment) as beat:
        until(lambda: OFTEN in values(registry_dir, NEXT_DUE), "the schedule")
        due = values(registry_dir, NEXT_DUE)[OFTEN]
        until(lambda: time.time() > due + 1, "the entry to be due")
        assert values(registry_dir, LAST_SENT) == {}
        assert values(registry_dir, NEXT_DUE)[OFTEN] == due
        beat.kill()
