"""Flower in an environment without jobmetrics, beside a worker that records: one configuration for both."""

from __future__ import annotations

import os
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from celery import Celery

from tests.integration.processes import celery_worker, process
from tests.support import servers
from tests.support.readings import until, values
from tests.unit.documents import DOCS, blocks

pytestmark = pytest.mark.full

VERSION = "2.2.*"
TASKS = 5
REFUSED = "No module named 'jobmetrics'"

APP = """
from celery import Celery

app = Celery("shop")
app.config_from_object("celeryconfig")
"""

# The worker sends events for Flower; jobmetrics does not need them.
MORE = """
import os

broker_url = os.environ["BROKER"]
worker_send_task_events = True
"""


@pytest.fixture(scope="module")
def flower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The celery command of an environment with Flower and without jobmetrics."""
    environment = tmp_path_factory.mktemp("flower")
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    install = [str(environment / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    done = subprocess.run(
        [*install, f"flower=={VERSION}", "celery[redis]"], capture_output=True, text=True, check=False
    )
    if done.returncode:
        servers.unavailable(f"Flower cannot be installed: {done.stderr.strip().splitlines()[-1:]}")
    return environment / "bin" / "celery"


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    """A folder with an application and its tasks; the test adds celeryconfig.py."""
    (tmp_path / "shop").mkdir()
    (tmp_path / "shop" / "__init__.py").write_text(APP)
    (tmp_path / "shop" / "tasks.py").write_text("from shop import app\n\n@app.task\ndef add(x, y):\n    return x + y\n")
    return tmp_path


def form(first_line: str) -> str:
    """The configuration in docs/celery.md that begins with this line."""
    (found,) = (block.text for block in blocks(DOCS / "celery.md") if block.text.startswith(first_line + "\n"))
    return found


def answer(url: str) -> str:
    try:
        with urllib.request.urlopen(url, timeout=10) as page:
            return str(page.read().decode())
    except (urllib.error.URLError, ConnectionError):
        return ""


def test_one_configuration_serves_the_worker_and_flower(
    flower: Path, shop: Path, redis_url: str, registry_dir: Path
) -> None:
    shared = form("# celeryconfig.py, shared with environments that have no jobmetrics")
    (shop / "celeryconfig.py").write_text(shared + MORE)
    (port,) = servers.free_ports(1)
    environment = {"BROKER": redis_url, "PYTHONPATH": str(shop), "JOBMETRICS_DIR": str(registry_dir)}
    log = shop / "flower.log"
    command = [str(flower), "-A", "shop", "flower", "--address=127.0.0.1", f"--port={port}"]
    with (
        process(command, log, **environment) as monitor,
        celery_worker(environment, shop / "worker.log", "--concurrency=1", app="shop"),
    ):

        def shows(name: str, ending: str) -> bool:
            assert monitor.poll() is None, log.read_text()
            lines = answer(f"http://127.0.0.1:{port}/metrics").splitlines()
            return any(line.startswith(name) and line.endswith(ending) for line in lines)

        until(lambda: shows("flower_worker_online{", " 1.0"), "Flower to know the worker")
        app = Celery(broker=redis_url)
        for number in range(TASKS):
            app.send_task("shop.tasks.add", args=(number, 1))
        job = ("celery", "shop.tasks.add", "celery", "success")
        until(lambda: values(registry_dir, "jobs_total") == {job: TASKS}, "the jobs to be counted")
        succeeded = 'flower_events_total{task="shop.tasks.add",type="task-succeeded",'
        until(lambda: shows(succeeded, f" {TASKS}.0"), "Flower to count them too")
    assert REFUSED not in log.read_text()


def test_the_plain_form_stops_flower_without_jobmetrics(flower: Path, shop: Path, redis_url: str) -> None:
    """The reason for the other form of the configuration."""
    (shop / "celeryconfig.py").write_text('imports = ("jobmetrics.celery.plugin",)\n' + MORE)
    (port,) = servers.free_ports(1)
    done = subprocess.run(
        [flower, "-A", "shop", "flower", "--address=127.0.0.1", f"--port={port}"],
        cwd=shop,  # celery imports what is in the working directory, such as this checkout's package
        env={**os.environ, "BROKER": redis_url, "PYTHONPATH": str(shop)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode
    assert REFUSED in done.stderr
