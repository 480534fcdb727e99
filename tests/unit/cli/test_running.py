"""Which executions `jobmetrics running` shows, and how."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from jobmetrics.cli.running import HEADINGS, RunningRow, rows, select, table, work_horse
from jobmetrics.events import Job, Started
from jobmetrics.recorder import Recorder
from jobmetrics.registry import ProcessIdentity, pid_namespace
from jobmetrics.registry.read import RunningExecution
from jobmetrics.registry.write.writer import Writer
from jobmetrics.settings import Settings
from tests.unit.doubles import die

OWNER = ProcessIdentity(77, 5, pid_namespace(), "celery", "child")
NOW = 1000.0


def execution(job_type: str = "shop.pay", job_id: str = "a1", start: float = 990.0) -> RunningExecution:
    return RunningExecution(("celery", job_type, "mail"), job_id, start, OWNER)


def test_the_longest_comes_first_and_an_unknown_start_last() -> None:
    found = rows([execution(start=math.nan), execution(start=999.0), execution(start=10.0)], NOW)
    assert [row.age_seconds for row in found] == [990.0, 1.0, None]


def test_a_row_has_the_job_and_the_process() -> None:
    assert rows([execution()], NOW) == [RunningRow("celery", "shop.pay", "mail", "a1", 77, None, 10.0)]


def test_a_start_in_the_future_has_no_negative_age() -> None:
    assert rows([execution(start=NOW + 5)], NOW)[0].age_seconds == 0.0


@pytest.mark.parametrize(
    ("pattern", "longer_than", "kept"),
    [
        (None, None, ["shop.pay", "shop.ship", "crm.sync"]),
        ("shop.*", None, ["shop.pay", "shop.ship"]),
        ("*sync", None, ["crm.sync"]),
        ("Shop.*", None, []),
        (None, 100.0, ["shop.pay"]),
        ("shop.*", 5.0, ["shop.pay"]),
    ],
)
def test_executions_are_selected_by_job_type_and_age(
    pattern: str | None, longer_than: float | None, kept: list[str]
) -> None:
    found = rows([execution("shop.pay", start=1.0), execution("shop.ship", start=997.0)], NOW)
    found += rows([execution("crm.sync", start=math.nan)], NOW)
    assert [row.job_type for row in select(found, pattern, longer_than)] == kept


def test_the_table_is_aligned_and_shows_what_is_missing() -> None:
    lines = table(
        [
            RunningRow("python", "report", "", None, 7, None, None),
            RunningRow("rq", "pay", "mail", "a1", 1234, 1240, 12.34),
        ]
    )
    assert lines[0].split() == " ".join(HEADINGS).split()
    assert lines[1].split() == ["python", "report", "''", "-", "7", "-", "-"]
    assert lines[2].split() == ["rq", "pay", "mail", "a1", "1234", "1240", "12.3"]
    assert lines[1].index("report") == lines[2].index("pay")


def test_names_with_control_characters_are_escaped() -> None:
    (_, line) = table([RunningRow("rq", "evil\x1b[2J", "q\n", "id\u202e", 7, None, 1.0)])
    assert line.isprintable()
    assert "evil\\x1b[2J" in line


@pytest.fixture
def parent() -> Iterator[psutil.Popen]:
    """A process with a child in its own process group and one in the parent's."""
    code = "import os, signal\nfor alone in (0, 1):\n    if os.fork() == 0:\n        alone and os.setpgid(0, 0)\n"
    code += "        print('child', flush=True)\n        signal.pause()\nsignal.pause()"
    with psutil.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as started:
        for _ in range(2):
            started.stdout.readline()
        yield started
        for child in started.children():
            child.kill()
        started.kill()


def test_the_work_horse_is_the_child_with_its_own_process_group(parent: psutil.Popen) -> None:
    (horse,) = (child.pid for child in parent.children() if os.getpgid(child.pid) == child.pid)
    worker = ProcessIdentity(parent.pid, 0, pid_namespace(), "rq", "worker")
    assert work_horse(worker) == horse
    assert work_horse(worker._replace(namespace=1)) is None
    assert work_horse(worker._replace(role="work-horse")) is None


def test_a_worker_that_has_ended_has_no_work_horse() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as ended:
        ended.wait()
    assert work_horse(ProcessIdentity(ended.pid, 0, pid_namespace(), "rq", "worker")) is None


def run(directory: Path, *options: str) -> str:
    command = [sys.executable, "-m", "jobmetrics", "running", "--dir", str(directory), *options]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def test_the_command_prints_the_executions_of_living_processes(
    registry_dir: Path, writer: Writer, active_settings: Settings
) -> None:
    other = Writer(active_settings)
    Recorder(other, active_settings).started(Started(Job("celery", "gone", "mail"), "killed"))
    die(other)
    record = Recorder(writer, active_settings)
    record.started(Started(Job("celery", "shop.pay", "mail"), "the id"))
    record.started(Started(Job("python", "report", ""), 5))
    (first, second) = json.loads(run(registry_dir, "--json"))
    assert first.pop("age_seconds") >= second["age_seconds"]
    assert first == {
        "system": "celery", "job_type": "shop.pay", "queue_name": "mail", "job_id": "the id",
        "pid": os.getpid(), "horse": None,
    }  # fmt: skip
    assert second["job_id"] is None
    assert "the id" in run(registry_dir, "--job-type", "shop.*")
    assert run(registry_dir, "--longer-than", "9999") == "no such execution is running\n"
