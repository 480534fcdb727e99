"""A real Celery worker shared by the tests of one pool: each test asserts what was added since it began."""

from __future__ import annotations

import subprocess
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from celery import Celery

from jobmetrics import settings
from jobmetrics.celery import instrument, uninstrument
from tests.integration import execution_ledger
from tests.integration.processes import celery_worker
from tests.support import servers
from tests.support.readings import active, assert_durations_add_up, counts, until, values

TASKS = "tests.integration.celery_tasks"
RESULTS = "tests.integration.celery_results:Results+"

Counts = Counter[tuple[str, ...]]


class Worker:
    """A running worker, its ledger and its registry directory."""

    def __init__(self, app: Any, base: Path, process: subprocess.Popen[bytes]) -> None:
        self.app = app
        self.directory = base / "registry"
        self.written = base / "ledger"
        self.log_file = base / "worker.log"
        self.process = process

    def send(self, task: str, *args: Any, **options: Any) -> Any:
        return self.app.send_task(task if "." in task else f"{TASKS}.{task}", args=args, **options)

    def release(self) -> None:
        """Release the jobs that wait for this."""
        self._released.touch()

    def hold_again(self) -> None:
        """Make jobs sent from now on wait again."""
        self._released.unlink()

    @property
    def _released(self) -> Path:
        return self.written.with_name(f"{self.written.name}.released")

    @property
    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def started(self) -> Counter[str]:
        """Executions by task, from the ledger."""
        lines = (line.partition(":") for line in execution_ledger.read(self.written))
        return Counter(task for task, _, word in lines if word == "start")

    def counted(self, family: str) -> Counts:
        """A family's values by task and the labels beyond the common ones; the queue is always the default one."""
        found = values(self.directory, family)
        assert {(labels[0], labels[2]) for labels in found} <= {("celery", "jobs")}
        return Counter({(_short(labels[1]), *labels[3:]): int(value) for labels, value in found.items()})

    def reading(self) -> dict[str, Counts]:
        """All families that count ends."""
        families = ("jobs_total", "jobs_withdrawn_total", "jobs_failures_total", "jobs_retries_total")
        found = {family: self.counted(family) for family in families}
        lost = values(self.directory, "jobs_worker_processes_lost_total")
        found["lost"] = Counter({(): int(sum(lost.values()))})
        return found

    def nothing_runs(self) -> bool:
        return active(self.directory) == {}

    def assert_consistent(self) -> None:
        """Assert the invariants that hold when nothing runs."""
        until(self.nothing_runs, f"nothing to run, not {active(self.directory)}")
        assert_durations_add_up(self.directory)
        ends = self.counted("jobs_total")
        by_task = Counter[str]()
        for (task, _), count in ends.items():
            by_task[task] += count
        by_task.pop("map", None)  # a task of Celery, which writes no ledger
        assert by_task == self.started()
        failures = Counter[str]()
        for (task, _), count in self.counted("jobs_failures_total").items():
            failures[task] += count
        assert failures == Counter({task: n for (task, status), n in ends.items() if status == "failure"})
        waits = counts(self.directory, "jobs_queue_wait_seconds")
        assert {labels[1:] for labels in waits} <= {labels[1:] for labels in counts(self.directory, DURATION)}


DURATION = "jobs_duration_seconds"


def _short(task: str) -> str:
    return "hostile_name" if '"quoted"' in task else task.rpartition(".")[2]


def _added(before: dict[str, Counts], now: dict[str, Counts]) -> dict[str, Counts]:
    return {family: now[family] - before[family] for family in now}


@contextmanager
def adds(worker: Worker, **wanted: dict[tuple[str, ...], int] | int) -> Iterator[None]:
    """Exactly these counts are added in the block. ends, withdrawn, failures, retries by task and label; lost."""
    names = {"ends": "jobs_total", "withdrawn": "jobs_withdrawn_total", "failures": "jobs_failures_total"}
    names |= {"retries": "jobs_retries_total"}
    before = worker.reading()
    yield
    expected = {family: Counter(_counts_of(wanted.get(name))) for name, family in names.items()}
    expected["lost"] = Counter({(): wanted["lost"]}) if wanted.get("lost") else Counter()

    def reached() -> bool:
        now = _added(before, worker.reading())
        return all(now[family] >= expected[family] for family in expected)

    try:
        until(reached, "these counts")
    except AssertionError:
        assert _added(before, worker.reading()) == expected, worker.log[-6000:]
        raise
    assert _added(before, worker.reading()) == expected
    worker.assert_consistent()


def _counts_of(wanted: object) -> dict[tuple[str, ...], int]:
    return wanted if isinstance(wanted, dict) else {}


@contextmanager
def running(broker: str, results: str, base: Path, *options: str, **environment: str) -> Iterator[Worker]:
    """A worker instrumented by its configuration alone, and an instrumented producer."""
    (base / "registry").mkdir(mode=0o700, exist_ok=True)
    variables = {
        "BROKER": broker,
        "RESULTS": RESULTS + results,
        "LEDGER": str(base / "ledger"),
        "JOBMETRICS_DIR": str(base / "registry"),
        "JOBMETRICS_PROPAGATE_ERRORS": "1",
        "C_FORCE_ROOT": "1",
        **environment,
    }
    settings.configure(dir=base / "registry", propagate_errors=True)
    producer = Celery("producer", broker=broker, backend=results)
    producer.conf.update(task_default_queue="jobs", broker_connection_retry_on_startup=True)
    instrument(producer)
    try:
        with celery_worker(variables, base / "worker.log", *options) as process:
            servers.shared_pids.add(process.pid)
            try:
                yield Worker(producer, base, process)
            finally:
                servers.shared_pids.discard(process.pid)
    finally:
        uninstrument(producer)
        # A result that is freed unsubscribes from its store, which may be gone by then: forget all results.
        setattr(producer.backend, "on_result_fulfilled", lambda _: None)  # noqa: B010 - a method to mypy
        producer.close()
        settings.use(None)
