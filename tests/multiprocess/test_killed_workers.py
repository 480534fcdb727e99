"""Workers that start, and workers that end without a shutdown: each is counted once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from jobmetrics import runtime
from jobmetrics.integration import clear_worker_gauges, worker_gauges
from jobmetrics.recorder import DefaultRecorder
from tests.multiprocess.support import Child, Worker, child, serve
from tests.support import readings

STARTS, LOST = "jobs_worker_starts_total", "jobs_workers_lost_total"


class Served(Worker):
    """A process that shows itself as a worker of a job system."""

    def __init__(self, path: Path, **more: Any) -> None:
        super().__init__(path, **more)
        runtime.state(DefaultRecorder).replacement = self.recorder

    def show(self) -> None:
        worker_gauges("python")

    def clear(self) -> None:
        clear_worker_gauges("python")


def served(path: Path) -> Any:
    return child(lambda pipe: serve(Served(path), pipe))


def counted(path: Path) -> tuple[float, float]:
    """Workers that started, and workers that were lost."""
    (starts,), (lost,) = (readings.samples(path, name).values() for name in (STARTS, LOST))
    return starts.value, lost.value


def show_and_kill(path: Path) -> None:
    with served(path) as one:
        one.ask("show")
        one.kill()


def test_a_killed_worker_is_lost_and_a_cleared_one_is_not(registry_dir: Path) -> None:
    with served(registry_dir) as one:
        one.ask("show")
        one.ask("show")
        assert counted(registry_dir) == (1.0, 0.0), "a start counts once, and the zero is shown"
        one.ask("clear")
        one.kill()
    show_and_kill(registry_dir)
    assert counted(registry_dir) == (2.0, 0.0), "no process has leased the slot since"
    with served(registry_dir) as two:
        two.ask("hit")
        assert counted(registry_dir) == (2.0, 1.0), "the process that leases the slot counts the loss"
    assert readings.values(registry_dir, "jobs_workers") == {}


def test_a_starting_worker_counts_those_lost_in_slots_that_stay_free(registry_dir: Path) -> None:
    started: list[Child] = []
    with served(registry_dir) as one, served(registry_dir) as two, served(registry_dir) as three:
        for each in (one, two, three):
            each.ask("show")
            started.append(each)
        two.kill()
        three.kill()
        one.ask("clear")
        one.leave()
    with served(registry_dir) as four, served(registry_dir) as five:
        four.ask("show")  # leases the first slot
        assert counted(registry_dir) == (4.0, 2.0)
        five.ask("show")
        assert counted(registry_dir) == (5.0, 2.0), "each loss counts once"
        assert readings.values(registry_dir, "jobs_workers") == {("python",): 2.0}
        assert readings.snapshot(registry_dir).live == 2, "a settled slot stays free"
        five.ask("clear")
        four.ask("clear")
