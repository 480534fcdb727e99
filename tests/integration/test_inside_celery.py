"""The APIs inside a job in Celery tasks, on real workers and a real Redis."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.integration import execution_ledger
from tests.integration.processes import celery_worker
from tests.support.readings import assert_durations_add_up, counts, samples, until, values

TASKS = "tests.integration.inside_celery"
POOLS = ["prefork", "threads", "solo"]

# Starts a worker with these options of Celery and settings of jobmetrics.
Start = Callable[..., AbstractContextManager[None]]


@pytest.fixture
def producer(redis_url: str) -> Iterator[Any]:
    from celery import Celery

    app = Celery("producer", broker=redis_url)
    app.conf.task_default_queue = "jobs"
    yield app
    app.close()


@pytest.fixture
def start(redis_url: str, registry_dir: Path, tmp_path: Path) -> Start:
    @contextmanager
    def started(*options: str, **environment: str) -> Iterator[None]:
        given = {
            "BROKER": redis_url,
            "LEDGER": str(tmp_path / "ledger"),
            "JOBMETRICS_DIR": str(registry_dir),
            "JOBMETRICS_PROPAGATE_ERRORS": "1",
            **environment,
        }
        with celery_worker(given, tmp_path / "worker.log", *options, app=TASKS):
            yield

    return started


def ended(registry_dir: Path) -> dict[tuple[str, str], float]:
    """Ends by task and status; every system label is Celery's."""
    found = values(registry_dir, "jobs_total")
    assert {(system, queue) for system, _, queue, _ in found} <= {("celery", "jobs")}
    return {(name.removeprefix(f"{TASKS}."), status): count for (_, name, _, status), count in found.items()}


def by_task(found: dict[tuple[str, ...], float]) -> dict[str, float]:
    return {labels[1].removeprefix(f"{TASKS}."): number for labels, number in found.items()}


@pytest.mark.parametrize("pool", POOLS)
def test_timed_job_sets_the_target_of_the_running_task_and_counts_it_once(
    registry_dir: Path, producer: Any, start: Start, pool: str
) -> None:
    tasks = [f"{TASKS}.{name}" for name in ("below", "above", "shared_below", "shared_above")] + ["renamed.below"]
    with start(f"--pool={pool}", "--concurrency=2"):
        for task in [*tasks, *tasks, f"{TASKS}.undecorated", f"{TASKS}.too_late"]:
            producer.send_task(task)
        until(lambda: sum(ended(registry_dir).values()) == 12, "12 ends")
    names = ["below", "above", "shared_below", "shared_above", "renamed.below"]
    assert ended(registry_dir) == {
        **{(name, "success"): 2 for name in names},
        ("undecorated", "success"): 1,
        ("too_late", "success"): 1,
    }
    targets = by_task(values(registry_dir, "jobs_target_duration_seconds"))
    assert targets == {**dict.fromkeys(names, 30.0), "too_late": 0.001}
    within = {labels: sample.value for labels, sample in samples(registry_dir, "jobs_within_target_total").items()}
    assert by_task(within) == {**dict.fromkeys(names, 2.0), "too_late": 0.0}
    assert_durations_add_up(registry_dir)


@pytest.mark.parametrize("pool", POOLS)
def test_stages_items_and_the_job_itself(
    registry_dir: Path, tmp_path: Path, producer: Any, start: Start, pool: str
) -> None:
    with start(f"--pool={pool}", "--concurrency=2"):
        producer.send_task(f"{TASKS}.parts")
        producer.send_task(f"{TASKS}.parts")
        producer.send_task(f"{TASKS}.outside")
        until(lambda: sum(ended(registry_dir).values()) == 3, "3 ends")
    labels = ("celery", f"{TASKS}.parts", "jobs")
    assert ended(registry_dir) == {("parts", "success"): 2, ("outside", "success"): 1}
    assert sorted(execution_ledger.read(tmp_path / "ledger")) == ["None", *["|".join((*labels, "True"))] * 2]
    assert values(registry_dir, "jobs_items_processed_total") == {labels: 34.0}
    assert counts(registry_dir, "jobs_stage_duration_seconds") == {(*labels, "download"): 2, (*labels, "parse"): 2}


def test_user_metrics_need_no_setup(registry_dir: Path, producer: Any, start: Start) -> None:
    with start("--pool=prefork", "--concurrency=2"):
        for _ in range(4):
            producer.send_task(f"{TASKS}.own_metrics")
        until(lambda: sum(ended(registry_dir).values()) == 4, "4 ends")
    assert values(registry_dir, "inside_rows_total") == {("orders",): 12.0}
    assert values(registry_dir, "inside_orders_total") == {("a",): 4.0}
    assert values(registry_dir, "inside_level") == {(): 2.5}
    assert samples(registry_dir, "inside_size_bytes")[()].sum == 400.0
    assert counts(registry_dir, "inside_load_seconds") == {("orders",): 4}


def test_misuse_never_fails_a_task(registry_dir: Path, producer: Any, start: Start) -> None:
    with start("--pool=solo", JOBMETRICS_PROPAGATE_ERRORS="0"):
        producer.send_task(f"{TASKS}.misuse")
        until(lambda: ended(registry_dir) == {("misuse", "success"): 1}, "its end")

        def shown() -> bool:
            producer.send_task(f"{TASKS}.below")  # the next job's start shows the updates kept from the last one
            return bool(values(registry_dir, "jobmetrics_internal_errors_total"))

        until(shown, "the errors")
    assert values(registry_dir, "jobmetrics_internal_errors_total") == {("labels",): 3, ("increment",): 1}
    assert values(registry_dir, "jobmetrics_dropped_updates_total") == {("negative", "inside_rows_total"): 1}
    assert values(registry_dir, "inside_rows_total") == {}


@pytest.mark.parametrize("pool", POOLS)
def test_processor_time_covers_only_the_task(registry_dir: Path, producer: Any, start: Start, pool: str) -> None:
    with start(f"--pool={pool}", "--concurrency=1"):
        producer.send_task(f"{TASKS}.burn", args=(0.2,))
        producer.send_task(f"{TASKS}.below")
        until(lambda: sum(ended(registry_dir).values()) == 2, "2 ends")
    used = by_task(values(registry_dir, "jobs_cpu_seconds_total"))
    assert 0.2 <= used["burn"] < 0.3
    assert used["below"] < 0.1


def test_simultaneous_tasks_in_threads_have_separate_processor_time(
    registry_dir: Path, producer: Any, start: Start
) -> None:
    with start("--pool=threads", "--concurrency=2"):
        for _ in range(2):
            producer.send_task(f"{TASKS}.burn_together", args=(0.3,))
        until(lambda: sum(ended(registry_dir).values()) == 2, "2 ends")
    assert 0.6 <= by_task(values(registry_dir, "jobs_cpu_seconds_total"))["burn_together"] < 0.9


def test_celery_still_checks_the_arguments_of_a_timed_task() -> None:
    from tests.integration import inside_celery

    with pytest.raises(TypeError, match="missing 1 required positional argument: 'one'"):
        inside_celery.needs.delay()
    assert inside_celery.below.__name__ == "below"


def test_a_task_called_as_a_function_is_a_separate_job(registry_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jobmetrics.testing import read_sample, temporary_registry
    from tests.integration import inside_celery

    with temporary_registry():
        inside_celery.below()
        labels = {"system": "python", "job_type": f"{TASKS}.below", "queue_name": "", "status": "success"}
        assert read_sample("jobs_total", labels) == 1.0
