"""The examples started as their README shows: the same commands, except for the ports of Redis and the exporter."""

from __future__ import annotations

import contextlib
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from tests.e2e.exporters import Exposed
from tests.e2e.services import get, running
from tests.support import servers
from tests.support.readings import until
from tests.support.readme_commands import commands

FOLDER = Path(__file__).parents[2] / "examples"
COMMANDS = commands(FOLDER / "README.md", "celery", "rq", "python", "jobmetrics")
SERVES = ("celery -A celery_app worker", "rq worker", "jobmetrics exporter")
SCHEDULES = ("celery -A celery_app beat", "rq cron")
LIMIT = 120.0  # a hang guard


class Shop:
    """The examples' processes on one Redis."""

    def __init__(self, path: Path, redis_url: str, stack: contextlib.ExitStack) -> None:
        self._path, self._redis, self._stack = path, redis_url, stack
        (self._port,) = servers.free_ports(1)
        programs = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
        self.environment = {
            **os.environ,
            "PATH": programs,
            "CELERY_BROKER_URL": redis_url,
            "RQ_REDIS_URL": redis_url,
            "JOBMETRICS_DIR": str(path / "registry"),
            "JOBMETRICS_LISTEN": f"127.0.0.1:{self._port}",
            "SHOP_DIR": str(path / "shop"),
        }

    def words(self, command: str) -> list[str]:
        command = command.replace("redis://localhost:6379/0", self._redis)
        return shlex.split(command.replace("/tmp/celerybeat-schedule", str(self._path / "schedule")))

    def start(self, command: str) -> subprocess.Popen[bytes]:
        log = self._path / f"{len(list(self._path.iterdir()))}.log"
        return self._stack.enter_context(running(self.words(command), self.environment, log, FOLDER))

    def run(self, command: str) -> str:
        done = subprocess.run(
            self.words(command),
            cwd=FOLDER,
            env=self.environment,
            capture_output=True,
            text=True,
            timeout=LIMIT,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def metrics(self) -> Exposed:
        return Exposed(get(f"http://127.0.0.1:{self._port}/metrics"))

    def total(self, name: str, **labels: str) -> float:
        """The sum over all series with these labels."""
        return sum(
            value
            for (sample, found), value in self.metrics().values.items()
            if sample == name and labels.items() <= dict(found).items()
        )


@pytest.fixture
def shop(tmp_path: Path, redis_url: str) -> Iterator[Shop]:
    with contextlib.ExitStack() as stack:
        made = Shop(tmp_path, redis_url, stack)
        for command in COMMANDS:
            if command.startswith(SERVES):
                made.start(command)
        yield made


def test_the_readme_has_every_kind_of_process() -> None:
    for beginning in (*SERVES, *SCHEDULES, "python -m celery_app.produce", "python -m rq_app.produce"):
        assert any(command.startswith(beginning) for command in COMMANDS), beginning


@pytest.mark.full
def test_running_jobs_are_recorded(shop: Shop) -> None:
    started = [shop.start(command) for command in COMMANDS if command.startswith(SCHEDULES)]
    started += [shop.start(command) for command in COMMANDS if command.endswith(".produce")]
    assert len(started) == 4
    wanted: dict[str, Callable[[], bool]] = {
        "jobs of each queue": lambda: all(
            shop.total("jobs_total", queue_name=queue, status="success") > 0
            for queue in ("celery", "archives", "high", "default")
        ),
        "retries that succeed": lambda: all(
            shop.total("jobs_retries_total", system=system) > 0
            and any(
                shop.total("jobs_total", system=system, job_type=job_type, status="success") > 0
                for job_type in ("celery_app.tasks.verify_delivery", "rq_app.jobs.verify_delivery")
            )
            for system in ("celery", "rq")
        ),
        "the scheduled job of RQ": lambda: shop.total("jobs_total", job_type="rq_app.jobs.clean_up") > 0,
        "beat's schedule": lambda: (
            shop.total("jobs_schedule_next_due_timestamp_seconds", schedule_entry="clean up") > 0
        ),
        "published jobs": lambda: all(
            shop.total("jobs_published_total", system=system) > 0 for system in ("celery", "rq")
        ),
        "the target": lambda: all(
            shop.total("jobs_within_target_total", system=system) > 0 for system in ("celery", "rq")
        ),
        "stages and items": lambda: (
            shop.total("jobs_stage_duration_seconds_count", stage="add up") > 0
            and shop.total("jobs_items_processed_total") > 0
        ),
        "the shop's own metric": lambda: shop.total("shop_revenue_euros_total", country="DE") > 0,
    }
    for what, condition in wanted.items():
        until(condition, what, LIMIT)
    said = [shop.run(command) for command in COMMANDS if command.startswith(("jobmetrics top", "jobmetrics check"))]
    assert len(said) == 2
    assert "celery: 1 workers" in said[0]
    assert [process.poll() for process in started] == [None] * 4


TROUBLE: Mapping[str, Callable[[Shop, str], bool]] = {
    "failures": lambda shop, system: shop.total("jobs_failures_total", system=system, error_type="ValueError") >= 2,
    "retries": lambda shop, system: shop.total(
        "jobs_failures_total", system=system, error_type="NotDeliveredError"
    ) >= 2,
    "slow": lambda shop, system: shop.total("jobs_active_oldest_timestamp_seconds", system=system) > 0
    and any("call_partner" in dict(labels).get("job_type", "") for _, labels in shop.metrics().values),
    "crashes": lambda shop, system: shop.total("jobs_worker_processes_lost_total", system=system) >= 2,
}  # fmt: skip


@pytest.mark.full
@pytest.mark.parametrize("trouble", TROUBLE)
def test_failures_are_shown(shop: Shop, trouble: str) -> None:
    found = [command for command in COMMANDS if f"--trouble {trouble}" in command]
    assert len(found) == 1
    for application, system in (("celery_app", "celery"), ("rq_app", "rq")):
        assert shop.run(found[0].replace("celery_app", application).replace("rq_app", application)) == "12 jobs sent\n"
        until(lambda system=system: TROUBLE[trouble](shop, system), f"{trouble} of {system}", LIMIT)  # type: ignore[misc]  # mypy cannot infer a lambda with a default
