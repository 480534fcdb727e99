"""django-rq: its worker command, its queues setting and its worker class setting, with a minimal project."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.integration import rq_jobs as jobs
from tests.integration.processes import process
from tests.integration.rq_workers import RQ_VERSION, Workers
from tests.support.readings import values

pytestmark = [
    pytest.mark.skipif(RQ_VERSION < (2, 6), reason="the django-rq of these tests needs RQ 2.6.1"),
    pytest.mark.skipif(find_spec("django_rq") is None, reason="django-rq is not installed"),
]


@pytest.fixture
def workers(redis_url: str, registry_dir: Path, tmp_path: Path) -> Iterator[Workers]:
    made = Workers(redis_url, registry_dir, tmp_path)
    yield made
    made.connection.close()


@pytest.mark.full
@pytest.mark.parametrize("options", [[], ["--worker-class", "jobmetrics.rq.SimpleWorker"]], ids=["setting", "option"])
def test_the_worker_command_counts(options: list[str], workers: Workers) -> None:
    workers.queue.enqueue(jobs.succeed)
    workers.queue.enqueue(jobs.fail)
    environment = {**workers.environment, "DJANGO_REDIS_URL": workers.url}
    command = [sys.executable, "-m", "tests.integration.django_project", "rqworker", "jobs", "--burst", *options]
    log = workers.tmp_path / "django.log"
    with process(command, log, **environment) as started:
        assert started.wait(60) == 0, log.read_text()
    workers.check({("succeed", "success"): 1, ("fail", "failure"): 1}, {("fail", "Gone"): 1})


@pytest.mark.full
def test_jobs_sent_by_django_are_counted_by_the_sender(workers: Workers) -> None:
    code = (
        "import django, rq\n"
        "from jobmetrics.rq import instrument_queue\n"
        "instrument_queue(rq.Queue)\n"
        "django.setup()\n"
        "import django_rq\n"
        "from tests.integration import rq_jobs\n"
        "django_rq.get_queue('jobs').enqueue(rq_jobs.succeed)\n"
    )
    environment = {
        **workers.environment,
        "DJANGO_REDIS_URL": workers.url,
        "DJANGO_SETTINGS_MODULE": "tests.integration.django_project",
    }
    log = workers.tmp_path / "producer.log"
    with process([sys.executable, "-c", code], log, **environment) as started:
        assert started.wait(60) == 0, log.read_text()
    workers.burst()
    workers.check({("succeed", "success"): 1})
    assert sum(values(workers.directory, "jobs_published_total").values()) == 1
