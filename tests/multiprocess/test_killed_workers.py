"""Workers that start, and workers that end without a shutdown: each is counted once."""

from __future__ import annotations

import os
import resource
import signal
from pathlib import Path
from typing import Any

import pytest

from jobmetrics import runtime
from jobmetrics.families import JOBS_WORKERS
from jobmetrics.instruments import BoundGauge
from jobmetrics.integration import clear_worker_gauges, worker_gauges
from jobmetrics.recorder import DefaultRecorder, Recorder
from jobmetrics.registry.directory import INDEX_NAME
from jobmetrics.registry.slots import Slot
from jobmetrics.registry.write import lease, session
from jobmetrics.registry.write.writer import Writer
from jobmetrics.settings import Settings
from tests.multiprocess.support import Child, Worker, child, in_child, serve
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

    def show_uncounted(self) -> None:
        """Show itself as a worker, without the counters of starts and losses."""
        BoundGauge(self.writer, JOBS_WORKERS, ("python",)).set(1.0)

    def load(self) -> None:
        self.writer.prepare()

    def limit_files(self, size: int) -> None:
        """Let this process write no file beyond this number of bytes."""
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))

    def show_while_slots_are_cut(self) -> None:
        """Show itself as a worker. Each free slot is cut between its fstat and its mapping."""
        self.hit()

        def map_cut(slot: Slot, fd: int, size: int) -> memoryview[float]:
            os.ftruncate(fd, 0)
            return original(slot, fd, size)

        original = Slot.map
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(Slot, "map", map_cut)
            self.show()

    def die_settling(self, slots: int) -> None:
        """Show itself as a worker, and be killed after it has settled this number of free slots."""
        left = iter(range(slots))

        def settle_or_die(*arguments: Any) -> dict[int, float]:
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            return original(*arguments)

        original = lease.settle
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(session, "settle", settle_or_die)
            self.show()

    def fork_one_that_hits(self) -> None:
        in_child(self.hit)

    def close_lock(self) -> None:
        """Close the lock's descriptor, as a program that becomes a daemon does."""
        assert self.writer.slot is not None
        os.close(self.writer.slot.lock_fd)

    def record_into(self, path: Path) -> None:
        """Continue in another directory."""
        active_settings = Settings(dir=str(path), propagate_errors=True)
        runtime.state(DefaultRecorder).replacement = Recorder(Writer(active_settings), active_settings)


def served(path: Path, **more: Any) -> Any:
    return child(lambda pipe: serve(Served(path, **more), pipe))


def counted(path: Path) -> tuple[float, float]:
    """Workers that started, and workers that were lost."""
    starts, lost = (sum(readings.values(path, name).values()) for name in (STARTS, LOST))
    return starts, lost


def show_and_kill(path: Path) -> None:
    with served(path) as one:
        one.ask("show")
        one.kill()


def test_a_killed_worker_is_lost_and_a_cleared_one_is_not(registry_dir: Path) -> None:
    with served(registry_dir) as one:
        one.ask("show")
        one.ask("show")
        assert counted(registry_dir) == (1.0, 0.0), "a start counts once"
        assert list(readings.samples(registry_dir, LOST)) == [("python",)], "the zero is shown"
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


@pytest.mark.parametrize("forks", [False, True], ids=["same slot", "another slot"])
def test_a_worker_that_leases_again_after_its_descriptors_were_closed_is_not_lost(
    registry_dir: Path, forks: bool
) -> None:
    with served(registry_dir) as one:
        one.ask("show")
        if forks:
            one.ask("fork_one_that_hits")  # its slot is the first that this process tries again
        one.ask("close_lock")
        one.ask("later")
        one.ask("show")
        assert counted(registry_dir) == (1.0, 0.0)
        one.ask("clear")
        one.leave()
    with served(registry_dir) as two:
        two.ask("show")
        assert counted(registry_dir) == (2.0, 0.0), "it was cleared before it ended"
        two.ask("clear")


def test_a_worker_that_goes_on_in_another_directory_is_not_lost_in_the_first(
    registry_dir: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    other.mkdir(mode=0o700)
    with served(registry_dir) as one:
        one.ask("show")
        one.ask("record_into", other)
        one.ask("show")
        assert readings.values(registry_dir, "jobs_workers") == {}
        assert readings.values(other, "jobs_workers") == {("python",): 1.0}
        assert counted(other) == (0.0, 0.0), "the worker did not start again"
        one.ask("clear")
        one.leave()
    with served(registry_dir) as two:
        two.ask("show")
        assert counted(registry_dir) == (2.0, 0.0)
        two.ask("clear")


def test_an_index_that_is_removed_before_a_loss_is_counted_raises_nothing(registry_dir: Path) -> None:
    with served(registry_dir) as one:
        one.ask("show_uncounted")
        one.kill()
    with served(registry_dir, propagate_errors=False) as two:
        two.ask("load")
        (registry_dir / INDEX_NAME).unlink()
        two.ask("limit_files", 0)  # no new index can be written, as on a full disk
        two.ask("hit")  # leases the slot, finds the loss, and then no index
        two.ask("limit_files", resource.RLIM_INFINITY)
        two.ask("later")
        assert readings.values(registry_dir, "hits_total") == {("all",): 1.0}
        assert counted(registry_dir)[1] == 1.0


def test_a_slot_that_is_cut_while_it_is_settled_raises_nothing(registry_dir: Path) -> None:
    with served(registry_dir) as one, served(registry_dir) as two:
        one.ask("hit")
        two.ask("show")
        two.kill()
        one.leave()
    with served(registry_dir, propagate_errors=False) as three:
        three.ask("show_while_slots_are_cut")
        assert counted(registry_dir) == (1.0, 0.0), "the start in the cut slot is gone"
        three.ask("clear")


def test_a_worker_that_is_killed_while_it_settles_slots_has_counted_those_it_settled(registry_dir: Path) -> None:
    with served(registry_dir) as one, served(registry_dir) as two, served(registry_dir) as three:
        for each in (one, two, three):
            each.ask("show")
        for each in (one, two, three):
            each.kill()
    with served(registry_dir) as four:
        four.send("die_settling", 1)  # after one slot by leasing it
        assert four.wait() == -signal.SIGKILL
    assert counted(registry_dir) == (4.0, 2.0)
    with served(registry_dir) as five:
        five.ask("show")
        assert counted(registry_dir) == (5.0, 4.0), "the third, and the fourth"
        five.ask("clear")
