"""Invariant 2: for SIGKILL at any time, acknowledged <= counted <= acknowledged + one in flight; nothing twice."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import ClassVar

import pytest

from jobmetrics.errors import RegistryError
from jobmetrics.registry.journal import Journal
from tests.multiprocess import damaging
from tests.multiprocess.interruption import AFTER, BEFORE, LINE, Interruption, interrupted_at
from tests.multiprocess.support import (
    Worker,
    child,
    children,
    in_child,
    record,
    run_and_exit,
    slot_files,
    worker,
)
from tests.support import readings
from tests.support.repetitions import sizes

WRITERS = 8
SERIES_A_WRITER = 40


# ---------------------------------------------------------------- kills at random times


class Writing:
    """A process that acknowledges each update through a pipe, in one byte, until it is killed."""

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        self._acknowledged, there = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._acknowledged)
            run_and_exit(lambda: _write(path, name, there))
        os.close(there)

    def kill(self) -> int:
        """Kill the process; return the count of updates it has acknowledged."""
        count = 0
        os.kill(self.pid, signal.SIGKILL)
        while data := os.read(self._acknowledged, 1 << 16):
            count += len(data)
        os.close(self._acknowledged)
        _, status = os.waitpid(self.pid, 0)
        assert os.waitstatus_to_exitcode(status) == -signal.SIGKILL
        return count


def _write(path: Path, name: str, acknowledged: int) -> None:
    """Each update goes to the shared series, to a histogram and to one of the writer's series, in this order."""
    one = Worker(path, max_series=100_000)  # the series of all writers fit
    n = 0
    while True:
        one.hit("all")
        one.measure(1.0)
        one.hit(f"{name}-{n % SERIES_A_WRITER}")
        os.write(acknowledged, b".")
        # A pipe that is not read may block this process, which is harmless: kills come at random times.
        n += 1


@sizes("times", 60, 500)
def test_kills_at_random_times(times: int, registry_dir: Path) -> None:
    chance = random.Random(times)
    acknowledged: dict[str, int] = {}
    writing = [Writing(registry_dir, f"w{n}") for n in range(WRITERS)]
    try:
        for n in range(times):
            time.sleep(chance.choice([0.0, 0.001, 0.003, 0.01, 0.03]))
            victim = writing.pop(chance.randrange(len(writing)))
            acknowledged[victim.name] = victim.kill()
            writing.append(Writing(registry_dir, f"w{WRITERS + n}"))
    finally:
        for victim in writing:
            acknowledged[victim.name] = victim.kill()
    values = readings.values(registry_dir, "hits_total")
    counted = dict.fromkeys(acknowledged, 0.0)
    for (who,), count in values.items():
        if who != "all":
            counted[who.partition("-")[0]] += count
    for name, count in acknowledged.items():
        assert count <= counted[name] <= count + 1, name
    everything = sum(acknowledged.values())
    assert everything > 0
    assert everything <= values["all",] <= everything + len(acknowledged)
    assert everything <= sum(readings.counts(registry_dir, "sizes").values()) <= everything + len(acknowledged)
    assert len(slot_files(registry_dir)) <= WRITERS


# ---------------------------------------------------------------- executions and reports of their deaths


class Supervised:
    """A process that runs executions one after another, and reports each one it starts and finishes."""

    def __init__(self, path: Path, name: str) -> None:
        self.name = name
        self._told, there = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(self._told)
            run_and_exit(lambda: _execute(path, name, there))
        os.close(there)

    def kill(self) -> tuple[int, int]:
        """Kill the process; return the counts of executions it started and finished."""
        os.kill(self.pid, signal.SIGKILL)
        reports = b""
        while data := os.read(self._told, 1 << 16):
            reports += data
        os.close(self._told)
        os.waitpid(self.pid, 0)
        return reports.count(b"t"), reports.count(b"f")


def _execute(path: Path, name: str, reports: int) -> None:
    one = Worker(path)
    n = 0
    while True:
        os.write(reports, b"t")
        one.start(f"{name}-{n}", name)
        one.end(f"{name}-{n}")
        os.write(reports, b"f")
        n += 1


@sizes("times", 40, 300)
def test_an_execution_is_counted_once_by_its_process_or_its_supervisor(times: int, registry_dir: Path) -> None:
    """The supervisor reports the unfinished execution of its dead child twice, and only after other processes have
    leased the slot again."""
    chance = random.Random(times)
    running = [Supervised(registry_dir, f"job {n}") for n in range(4)]
    dead: list[tuple[str, int, int]] = []
    with worker(registry_dir) as supervisor:

        def bury(victim: Supervised) -> None:
            taken, finished = victim.kill()
            dead.append((victim.name, taken, finished))

        def report(name: str, taken: int, finished: int) -> None:
            if taken > finished:
                supervisor.ask("lost", f"{name}-{finished}", name)
                assert supervisor.ask("lost", f"{name}-{finished}", name) is False, "a second report counts nothing"

        try:
            for n in range(times):
                time.sleep(chance.choice([0.0, 0.002, 0.01]))
                bury(running.pop(chance.randrange(len(running))))
                running.append(Supervised(registry_dir, f"job {4 + n}"))
                if n % 3 == 2:  # other processes have the slots by now
                    for one in dead[-3:]:
                        report(*one)
        finally:
            reported = len(dead) - len(dead) % 3
            for victim in running:
                bury(victim)
            for one in dead[reported:]:
                report(*one)
        supervisor.leave()
    ended: dict[tuple[str, str], float] = {}
    for (_, name, _, status), count in readings.values(registry_dir, "jobs_total").items():
        ended[name, status] = count
    lost_between_mark_and_cells = 0
    for name, taken, finished in dead:
        success, failure = ended.get((name, "success"), 0.0), ended.get((name, "failure"), 0.0)
        assert finished <= success <= taken, name
        assert failure in {0.0, 1.0}
        assert taken - 1 <= success + failure <= taken, name
        lost_between_mark_and_cells += int(taken - success - failure)
    assert lost_between_mark_and_cells <= len(dead) // 4, "a kill between mark and cells is rare"
    # The duration's cells are written first: a kill between them and the status counts one more duration.
    durations = sum(readings.counts(registry_dir, "jobs_duration_seconds").values())
    durations += sum(readings.values(registry_dir, "jobs_duration_unknown_total").values())
    assert 0 <= durations - sum(ended.values()) <= lost_between_mark_and_cells


def _victim_of(patch: Callable[[], None]) -> Callable[[Path], None]:
    def run(path: Path) -> None:
        def killed(_: Connection) -> None:
            one = Worker(path)
            one.job("before")
            patch()
            one.start("victim")
            one.end("victim")
            _kill_self()

        with child(killed) as one:
            assert one.wait() == -signal.SIGKILL

    return run


def _kill_self(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _around_the_mark(before: Callable[..., object], after: Callable[..., object]) -> None:
    original = Journal.end

    def end(self: Journal, entry: int, at: float) -> None:
        before()
        original(self, entry, at)
        after()

    setattr(Journal, "end", end)  # noqa: B010 - a method to mypy


def _nothing() -> None:
    pass


def _before_the_mark() -> None:
    _around_the_mark(_kill_self, _nothing)


def _between_mark_and_cells() -> None:
    _around_the_mark(_nothing, _kill_self)


@pytest.mark.parametrize("leased_again", [False, True])
@pytest.mark.parametrize(
    ("kill_at", "successes", "failures"),
    [(_before_the_mark, 1, 1), (_between_mark_and_cells, 1, 0), (_nothing, 2, 0)],
)
def test_a_kill_around_the_end_of_an_execution(
    kill_at: Callable[[], None], successes: int, failures: int, leased_again: bool, registry_dir: Path
) -> None:
    """It is reported once, or was counted; one end is lost only between the mark and the cells."""
    with worker(registry_dir) as supervisor:
        supervisor.ask("hit", "all")
        _victim_of(kill_at)(registry_dir)
        if leased_again:
            record(registry_dir, ("start", "other"), ("end", "other"), ("start", "dies with it"))
        for _ in range(3):
            supervisor.ask("lost", "victim")
        supervisor.leave()
    by_status: dict[str, float] = {}
    for labels, count in readings.values(registry_dir, "jobs_total").items():
        by_status[labels[-1]] = by_status.get(labels[-1], 0.0) + count
    assert by_status.get("success", 0.0) == successes + leased_again
    assert by_status.get("failure", 0.0) == failures
    readings.assert_durations_add_up(registry_dir)


# ---------------------------------------------------------------- kills at each call, and at each line


class Scenario:
    """A stretch of work that is killed at every step, and the state required afterwards.

    prepare: makes the directory. ready: what the victim does before the stretch. stretch: acknowledged when it
    completes. counted: the counts before the stretch; the stretch counts each of these series once.
    """

    name: str
    counted: ClassVar[dict[str, float]]
    readable = True  # at every step, before another process repairs it

    def prepare(self, path: Path) -> None:
        path.mkdir(mode=0o700)

    def ready(self, one: Worker) -> None:
        pass

    def stretch(self, one: Worker) -> None:
        for who in self.counted:
            one.hit(who)


class FirstRecord(Scenario):
    """Make the directory, its index and its first slot."""

    name = "first record"
    counted: ClassVar = {"all": 0.0}
    readable = False

    def prepare(self, path: Path) -> None:
        pass


class Append(Scenario):
    """Append a family and a series in a process that has its slot."""

    name = "append"
    counted: ClassVar = {"known": 1.0, "new": 0.0}

    def ready(self, one: Worker) -> None:
        one.hit("known")

    def stretch(self, one: Worker) -> None:
        super().stretch(one)
        one.measure(1.0)
        one.highest.at(("new",)).set(1.0)


class Growth(Scenario):
    """Use more series than the slot has cells: its file grows and is mapped again."""

    name = "growth"
    counted: ClassVar = {"known": 1.0, "first behind": 0.0}

    def ready(self, one: Worker) -> None:
        one.hit("known")
        for n in range(102):  # of five cells each; the slot has 512
            one.measure(1.0, f"{n}")

    def stretch(self, one: Worker) -> None:
        one.hit("known")
        one.measure(1.0, "102")
        one.measure(1.0, "103")
        one.hit("first behind")


class LeaseOfAFreedSlot(Scenario):
    """A process died in the slot with a live gauge set and an execution running."""

    name = "lease"
    counted: ClassVar = {"all": 7.0}

    def prepare(self, path: Path) -> None:
        super().prepare(path)
        record(path, ("hit", "all", 7.0), ("level", 3.0), ("start", "running"))


class SetAsideOfADamagedSlot(Scenario):
    """The damaged slot is the only one, so every lease finds it."""

    name = "set-aside of a slot"
    counted: ClassVar = {"all": 0.0}

    def prepare(self, path: Path) -> None:
        super().prepare(path)
        record(path, ("hit", "all", 7.0), ("level", 3.0))
        damaging.zero_the_header(path / "slot-00000")


class SetAsideOfADamagedIndex(Scenario):
    """A new generation begins, and its first lessee lays the slot out again."""

    name = "set-aside of the index"
    counted: ClassVar = {"all": 0.0}
    readable = False

    def prepare(self, path: Path) -> None:
        super().prepare(path)
        record(path, ("hit", "all", 7.0), ("hit", "other", 7.0), ("measure", 1.0), ("level", 3.0))
        damaging.zero_the_header(path / "index")


class AfterAWipe(Scenario):
    """The index was removed; slots of the old generation remain."""

    name = "wiped index"
    counted: ClassVar = {"all": 0.0}
    readable = False

    def prepare(self, path: Path) -> None:
        super().prepare(path)
        record(path, ("hit", "other", 7.0), ("hit", "all", 7.0), ("measure", 1.0))
        (path / "index").unlink()


class MoveOfALivingWriter(Scenario):
    """The index was removed while a process recorded."""

    name = "move"
    counted: ClassVar = {"all": 0.0}
    readable = False

    def ready(self, one: Worker) -> None:
        one.hit("other", 7.0)
        one.hit("all", 7.0)
        (Path(one.writer.directory.path) / "index").unlink()

    def stretch(self, one: Worker) -> None:
        one.later()
        one.hit("all")


SCENARIOS = [
    FirstRecord, Append, Growth, LeaseOfAFreedSlot, SetAsideOfADamagedSlot, SetAsideOfADamagedIndex, AfterAWipe,
    MoveOfALivingWriter,
]  # fmt: skip


def check_kills(scenario: Scenario, when: str, tmp_path: Path, stride: int = 1) -> None:
    path = tmp_path / "registry"

    def victim(interruption: Interruption, _: Connection) -> None:
        scenario.prepare(path)
        one = Worker(path)
        scenario.ready(one)
        with interruption.armed():
            scenario.stretch(one)

    for steps, _ in enumerate(interrupted_at(when, victim, stride=stride), 1):
        _check_counts(scenario, path, f"killed {when}, step {1 + (steps - 1) * stride}", killed=True)
        path.rename(tmp_path / f"done-{steps}")
    _check_counts(scenario, path, "not killed", killed=False)


def _check_counts(scenario: Scenario, path: Path, step: str, *, killed: bool) -> None:
    before = _values_now(path, scenario)
    in_child(lambda: _survivor(path, scenario))
    after = readings.values(path, "hits_total")
    for who, counted in scenario.counted.items():
        if scenario.readable:
            assert counted <= before.get((who,), 0.0) <= counted + 1, f"{step}: {who}"
        low = counted + 1 if killed else counted + 2
        assert low <= after[who,] <= counted + 2, f"{step}: {who}"
    assert readings.values(path, "level") == {}, step
    assert readings.active(path) == {}, step
    snapshot = readings.snapshot(path)
    assert (snapshot.live, snapshot.damaged) == (0, 0), step
    assert len(slot_files(path)) <= 2, step


def _values_now(path: Path, scenario: Scenario) -> dict[tuple[str, ...], float]:
    try:
        return readings.values(path, "hits_total")
    except RegistryError:
        if scenario.readable:
            raise
        return {}


def _survivor(path: Path, scenario: Scenario) -> None:
    one = Worker(path)
    for who in scenario.counted:
        one.hit(who)


@pytest.mark.parametrize("when", [BEFORE, AFTER])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
def test_kills_at_each_call(scenario: type[Scenario], when: str, tmp_path: Path) -> None:
    check_kills(scenario(), when, tmp_path)


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.name)
@sizes("stride", 17, 1)
def test_kills_at_each_line(scenario: type[Scenario], stride: int, tmp_path: Path) -> None:
    """Between two system calls much is written to mapped files."""
    check_kills(scenario(), LINE, tmp_path, stride)


# ---------------------------------------------------------------- threads, and processes that exit normally


@sizes("times", 20_000, 2_000_000)
def test_threads_lose_no_update(times: int, registry_dir: Path) -> None:
    def run() -> None:
        one = Worker(registry_dir)

        def count(number: int) -> None:
            for n in range(times):
                one.hit("all")
                if not n % 1000:
                    one.measure(1.0, f"{number}-{n}")

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(count, range(8)))  # raises an exception of any thread

    in_child(run)
    assert readings.values(registry_dir, "hits_total") == {("all",): 8.0 * times}
    assert sum(readings.counts(registry_dir, "sizes").values()) == 8 * len(range(0, times, 1000))


def test_processes_that_exit_lose_nothing(registry_dir: Path) -> None:
    def run(_: Connection) -> None:
        one = Worker(registry_dir)
        for n in range(100):
            one.hit("all")
            one.hit(f"{n}")
            one.measure(float(n))
            one.job(f"{os.getpid()}-{n}")

    for _ in range(3):
        with children([run] * WRITERS) as all_:
            for one in all_:
                one.join()
    values = readings.values(registry_dir, "hits_total")
    assert values.pop(("all",)) == 100.0 * WRITERS * 3
    assert values == {(f"{n}",): float(WRITERS * 3) for n in range(100)}
    assert readings.counts(registry_dir, "sizes") == {("all",): 100.0 * WRITERS * 3}
    assert sum(readings.values(registry_dir, "jobs_total").values()) == 100.0 * WRITERS * 3
    readings.assert_durations_add_up(registry_dir)
