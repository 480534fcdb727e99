"""Invariant 5: a child never writes to its parent's slot, never keeps or ends its lease, and no fork deadlocks."""

from __future__ import annotations

import contextlib
import functools
import gc
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from multiprocessing.connection import Connection
from pathlib import Path

import pytest

from jobmetrics import recorder, runtime, settings
from jobmetrics.instruments import Counter
from jobmetrics.registry.directory import slot_number
from jobmetrics.registry.index import IndexFile
from jobmetrics.registry.write import current, session
from tests.multiprocess.interruption import AFTER, BEFORE, Interruption, Step
from tests.multiprocess.support import (
    Child,
    Worker,
    child,
    fork,
    fork_without_hooks,
    in_child,
    in_order,
    record,
    run_and_exit,
    serve,
    slot_files,
)
from tests.support import readings
from tests.support.repetitions import sizes

THREADS = 8


class Parent(Worker):
    """A worker that forks children and waits for them."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._idle: list[Child] = []

    def fork_and(self, *asked: tuple[object, ...]) -> None:
        """Fork a child that calls the given methods and ends; it uses the parent's bound series."""

        def run(_: object) -> None:
            for name, *arguments in asked:
                getattr(self, str(name))(*arguments)

        fork(run).join()

    def fork_idle(self) -> int:
        """Fork a child that does nothing until it is killed."""
        started = fork(_idle)
        self._idle.append(started)
        started.answer()
        return started.pid

    def fork_serving(self) -> None:
        self._idle.append(fork(lambda pipe: serve(self, pipe)))

    def have_child(self, name: str, *arguments: object) -> object:
        return self._idle[-1].ask(name, *arguments)

    def exit_normally(self) -> None:
        """Fork a child that ends as a program does, with all exit handlers of the interpreter."""
        started = os.fork()
        if started == 0:
            self.hit("all")
            sys.exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(started, 0)[1]) == 0

    def lease_descriptors(self) -> list[int]:
        return [fd for fd, name in _open_files() if slot_number(name.name) is not None]

    def close_all_descriptors(self) -> None:
        """Close descriptors as a daemoniser does; their numbers are soon reused."""
        for fd in self.lease_descriptors():
            os.close(fd)
            opened = os.open("/dev/null", os.O_RDONLY)
            assert opened <= fd
            if opened != fd:
                os.dup2(opened, fd)
                os.close(opened)

    def end_idle(self) -> None:
        for started in self._idle:
            started.end()


def _idle(pipe: Connection) -> None:
    pipe.send((True, None))  # it runs, and has released its parent's resources
    while True:
        signal.pause()


def _open_files() -> Iterator[tuple[int, Path]]:
    for entry in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(OSError):
            yield int(entry.name), entry.readlink()


def parent(path: Path) -> contextlib.AbstractContextManager[Child]:
    return child(lambda pipe: serve(Parent(path), pipe))


def total(path: Path, who: str = "all") -> float:
    return readings.values(path, "hits_total").get((who,), 0.0)


# ---------------------------------------------------------------- slots and leases


def test_a_child_writes_into_its_own_slot(registry_dir: Path) -> None:
    with parent(registry_dir) as one:
        one.ask("hit", "all", 1.0, 5)
        one.ask("measure", 1.5)
        one.ask("start", "running")
        before = (registry_dir / "slot-00000").read_bytes()
        one.ask(
            "fork_and", ("hit", "all", 1.0, 3), ("measure", 1.5), ("level", 2.0), ("hit", "new"), ("job", "its own")
        )
        assert (registry_dir / "slot-00000").read_bytes() == before
        one.ask("end", "running")
        one.leave()
    assert readings.values(registry_dir, "hits_total") == {("all",): 8.0, ("new",): 1.0}
    assert readings.counts(registry_dir, "sizes") == {("all",): 2.0}
    assert sum(readings.values(registry_dir, "jobs_total").values()) == 2.0
    assert len(slot_files(registry_dir)) == 2


def test_children_of_children_have_their_own_slots(registry_dir: Path) -> None:
    with parent(registry_dir) as one:
        one.ask("hit", "all", 1.0)
        one.ask("fork_and", ("hit", "all", 10.0), ("fork_and", ("hit", "all", 100.0)), ("hit", "all", 10.0))
        one.ask("hit", "all", 1.0)
        assert total(registry_dir) == 122.0
        assert len(slot_files(registry_dir)) == 3
        one.leave()


def test_a_child_that_ends_does_not_end_its_parents_lease(registry_dir: Path) -> None:
    with parent(registry_dir) as one:
        one.ask("hit", "all")
        one.ask("level", 7.0)
        one.ask("fork_and")
        one.ask("fork_and", ("hit", "all"))
        one.ask("exit_normally")
        snapshot = readings.snapshot(registry_dir)
        assert [owner.pid for owner in snapshot.owners] == [one.pid]
        assert readings.values(registry_dir, "level") == {("all",): 7.0}
        record(registry_dir, ("hit", "all"))
        assert len(slot_files(registry_dir)) == 2, "no other process leased the parent's slot"
        one.leave()
    assert total(registry_dir) == 4.0


def test_the_idle_child_of_a_killed_parent_does_not_keep_its_lease(registry_dir: Path) -> None:
    with parent(registry_dir) as one:
        one.ask("hit", "all")
        one.ask("level", 7.0)
        one.ask("start", "running")
        idle = one.ask("fork_idle")
        one.kill()
        try:
            os.kill(idle, 0)
            snapshot = readings.snapshot(registry_dir)
            assert (snapshot.live, snapshot.free) == (0, 1)
            assert readings.values(registry_dir, "level") == {}
            assert readings.active(registry_dir) == {}
            record(registry_dir, ("hit", "all"))
            assert len(slot_files(registry_dir)) == 1
        finally:
            os.kill(idle, signal.SIGKILL)
    assert total(registry_dir) == 2.0


def test_a_program_started_by_a_worker_does_not_keep_its_lease(registry_dir: Path) -> None:
    with child(lambda pipe: _start_program(registry_dir, pipe)) as one:
        program = one.answer()
        one.kill()
        try:
            os.kill(program, 0)
            assert readings.snapshot(registry_dir).live == 0
        finally:
            os.kill(program, signal.SIGKILL)


def _start_program(path: Path, pipe: Connection) -> None:
    Worker(path).hit("all")
    started = subprocess.Popen(["sleep", "600"], close_fds=False)
    pipe.send((True, started.pid))
    started.wait()


def test_a_child_does_not_end_its_parents_executions(registry_dir: Path) -> None:
    """A job forks, and the child leaves the job's function too."""
    with parent(registry_dir) as one:
        one.ask("start", "forking")
        one.ask("fork_and", ("end", "forking"))
        assert sum(readings.active(registry_dir).values()) == 1
        assert readings.values(registry_dir, "jobs_total") == {}
        one.ask("end", "forking")
        one.leave()
    assert sum(readings.values(registry_dir, "jobs_total").values()) == 1.0
    readings.assert_durations_add_up(registry_dir)


def test_updates_in_a_parents_memory_are_counted_once(registry_dir: Path) -> None:
    """While another process has the index locked, both keep their updates; neither writes the other's."""
    record(registry_dir, ("hit", "known"))
    with child(lambda pipe: serve(_Impatient(registry_dir), pipe)) as one:
        with locked_index(registry_dir):
            one.ask("hit", "all", 1.0)
            one.ask("fork_serving")
            one.ask("have_child", "hit", "all", 10.0)
            one.ask("hit", "all", 1.0)
            assert total(registry_dir) == 0.0
        one.ask("have_child", "later")
        assert total(registry_dir) == 10.0
        one.ask("later")
        assert total(registry_dir) == 12.0
        one.ask("end_idle")
        one.leave()


class _Impatient(Parent):
    def __init__(self, path: Path) -> None:
        super().__init__(path)
        setattr(session, "LOCK_WAIT", 0.0)  # noqa: B010 - a constant to mypy


@contextlib.contextmanager
def locked_index(path: Path) -> Iterator[None]:
    """Another process has the index locked."""
    with child(lambda pipe: _hold_index(path, pipe)) as holder:
        holder.answer()
        yield
        holder.kill()


def _hold_index(path: Path, pipe: Connection) -> None:
    from jobmetrics.registry.files import try_lock

    fd = os.open(path / "index", os.O_RDWR)
    assert try_lock(fd)
    pipe.send((True, None))
    signal.pause()


# ---------------------------------------------------------------- daemonisers


def test_a_daemoniser_that_closes_every_descriptor_loses_nothing(registry_dir: Path) -> None:
    with parent(registry_dir) as one:
        one.ask("hit", "all")
        one.ask("level", 3.0)
        one.ask("close_all_descriptors")
        one.ask("job", "first")  # a job's start checks the lease
        one.ask("hit", "all")
        snapshot = readings.snapshot(registry_dir)
        assert [owner.pid for owner in snapshot.owners] == [one.pid]
        record(registry_dir, ("hit", "all"))
        one.ask("hit", "all")
        one.leave()
    assert total(registry_dir) == 4.0
    assert sum(readings.values(registry_dir, "jobs_total").values()) == 1.0


def test_a_reused_descriptor_is_not_closed(registry_dir: Path) -> None:
    """The numbers of lease and mapping were closed and reused: releasing them must not close the new files."""

    def run() -> None:
        one = Parent(registry_dir)
        one.hit("all")
        numbers = one.lease_descriptors()
        one.close_all_descriptors()
        _require_null_devices(numbers)
        all_there = functools.partial(_require_null_devices, numbers)
        fork(in_order(all_there, one.hit, all_there)).join()
        one.job()
        _require_null_devices(numbers)
        one.hit("all")
        fork(in_order(one.job, all_there)).join()

    in_child(run)
    assert total(registry_dir) == 3.0
    assert sum(readings.values(registry_dir, "jobs_total").values()) == 2.0


def _require_null_devices(numbers: list[int]) -> None:
    gc.collect()
    assert [Path(f"/proc/self/fd/{number}").readlink() for number in numbers] == [Path("/dev/null")] * len(numbers)


def test_a_daemons_grandchild_records(registry_dir: Path) -> None:
    """Double fork, new session and all descriptors closed, as python-daemon and Celery's --detach do."""

    def run(pipe: Connection) -> None:
        one = Worker(registry_dir)
        one.hit("all")
        kept = pipe.fileno()
        if os.fork():
            os._exit(0)
        os.setsid()
        if os.fork():
            os._exit(0)
        for fd in range(3, 256):
            if fd != kept:
                with contextlib.suppress(OSError):
                    os.close(fd)
        record_on = functools.partial(one.hit, "all", 1.0, 9)
        run_and_exit(in_order(pipe.recv, one.job, record_on, lambda: pipe.send((True, os.getpid())), pipe.recv))

    with child(run) as one:
        one.join()
        one.pipe.send("the parent is gone")
        daemon = one.answer()
        snapshot = readings.snapshot(registry_dir)
        assert [owner.pid for owner in snapshot.owners] == [daemon]
        assert total(registry_dir) == 10.0
        one.pipe.send(None)
        readings.until(lambda: not Path(f"/proc/{daemon}").exists(), "the daemon's end")
    assert len(slot_files(registry_dir)) == 1, "parent and daemon never had a lease at the same time"


# ---------------------------------------------------------------- forks while threads record

CHILD_HITS = 5


@sizes("times", 20, 200)
def test_forking_while_threads_record(times: int, registry_dir: Path) -> None:
    """Threads count, make series and grow the slot; no child hangs, and nothing is counted twice or lost."""

    def run(pipe: Connection) -> None:
        one = Worker(registry_dir)
        stop = threading.Event()
        counted = [0] * THREADS
        threads = [threading.Thread(target=_record_until, args=(one, stop, counted, n)) for n in range(THREADS)]
        for thread in threads:
            thread.start()
        for n in range(times):
            fork(lambda _, n=n: _child_of_threads(one, n)).join()  # type: ignore[misc]
        stop.set()
        for thread in threads:
            thread.join()
        pipe.send((True, sum(counted)))

    with child(run) as one:
        by_threads = one.answer()
        one.join()
    values = readings.values(registry_dir, "hits_total")
    assert values["all",] == by_threads + times * CHILD_HITS
    assert sum(count for (who,), count in values.items() if who.startswith("child ")) == times
    assert sum(count for (who,), count in values.items() if who.startswith("thread ")) == by_threads
    assert sum(readings.counts(registry_dir, "sizes").values()) == by_threads + times
    assert len(slot_files(registry_dir)) == 2


def _record_until(one: Worker, stop: threading.Event, counted: list[int], number: int) -> None:
    while not stop.is_set():
        n = counted[number]
        one.hit("all")
        one.measure(float(n), f"thread {number}-{n % 50}")
        one.hit(f"thread {number}-{n % 100}")
        counted[number] += 1


def _child_of_threads(one: Worker, n: int) -> None:
    one.hit("all", 1.0, CHILD_HITS)
    one.measure(1.0, "child")
    one.hit(f"child {n}")


@sizes("times", 15, 200)
def test_idle_children_forked_while_threads_record_keep_no_lease(times: int, registry_dir: Path) -> None:
    """Whatever a thread was about to do when its process forked, the child releases the lease."""

    def run(pipe: Connection) -> None:
        one = Parent(registry_dir)
        stop = threading.Event()
        counted = [0] * THREADS
        for n in range(THREADS):
            threading.Thread(target=_record_until, args=(one, stop, counted, n), daemon=True).start()
        pipe.send((True, one.fork_idle()))
        signal.pause()

    left = []
    try:
        for _ in range(times):
            with child(run) as one:
                left.append(one.answer())
                one.kill()
            os.kill(left[-1], 0)
            # The child releases the lease in its first hook, which may run after its parent has ended.
            readings.until(lambda: readings.snapshot(registry_dir).live == 0, "the lease to end")
            assert readings.snapshot(registry_dir).free == 1
    finally:
        for pid in left:
            os.kill(pid, signal.SIGKILL)


@pytest.mark.parametrize("when", [BEFORE, AFTER])
@pytest.mark.parametrize("first_record", [True, False], ids=["first-record", "append"])
def test_forking_at_each_call_that_another_thread_makes(first_record: bool, when: str, tmp_path: Path) -> None:
    """Whatever the thread has open or locked: the child keeps no extra file and misses none."""
    steps = 0
    while True:
        steps += 1
        path = tmp_path / f"{steps}"
        with child(functools.partial(_forks_while_a_thread_stands, path, (when, steps), first_record)) as one:
            if not one.answer():
                one.join()
                break
            idle = one.answer()
            one.kill()
        try:
            os.kill(idle, 0)
            in_child(functools.partial(_record_at_once, path, "after"))
            snapshot = readings.snapshot(path)
            owners = [owner.pid for owner in snapshot.owners]
            assert (owners, snapshot.live) == ([], 0), f"step {steps}"
            values = readings.values(path, "hits_total")
            assert values.get(("after",)) == 1.0, f"step {steps}: no process has the index locked"
            known = 0.0 if first_record else 2.0  # while the thread has the index locked, a new series must wait
            assert known <= values.get(("all",), 0.0) <= known + first_record, f"step {steps}"
        finally:
            os.kill(idle, signal.SIGKILL)
    assert steps > 5


def _record_at_once(path: Path, who: str) -> None:
    _Impatient(path).hit(who)


def _forks_while_a_thread_stands(path: Path, step: Step, first_record: bool, pipe: Connection) -> None:
    setattr(session, "FORK_WAIT", 0.001)  # noqa: B010 - a constant to mypy
    one = _Impatient(path)
    if not first_record:
        one.hit("all")
    inside = threading.Event()

    def stand() -> None:
        inside.set()
        threading.Event().wait()

    def record_interrupted() -> None:
        interruption = Interruption(step, stand)
        with interruption.armed():
            one.hit("by the thread")
        inside.set()
        through.set()

    through = threading.Event()
    threading.Thread(target=record_interrupted, daemon=True).start()
    inside.wait()
    pipe.send((True, not through.is_set()))
    if through.is_set():
        return
    fork(in_order(one.hit, one.later)).join()
    pipe.send((True, one.fork_idle()))
    signal.pause()


def _stuck_in_the_slow_path(one: Worker, go_on: threading.Event) -> threading.Thread:
    """A thread of this process that blocks while it appends to the index, until the event is set."""
    inside = threading.Event()
    original = IndexFile.place

    def slow(*arguments: object, **keywords: object) -> object:
        if threading.current_thread() is thread:
            inside.set()
            go_on.wait()
        return original(*arguments, **keywords)  # type: ignore[arg-type]

    setattr(IndexFile, "place", slow)  # noqa: B010 - a method to mypy
    thread = threading.Thread(target=one.hit, args=("slow",))
    thread.start()
    inside.wait()
    return thread


def test_forking_while_a_thread_stays_in_the_slow_path(registry_dir: Path) -> None:
    """The fork does not wait for the thread, and the child owns nothing that the thread had begun."""

    def run() -> None:
        setattr(session, "FORK_WAIT", 0.05)  # noqa: B010 - a constant to mypy
        one = Worker(registry_dir)
        one.hit("all")
        go_on = threading.Event()
        thread = _stuck_in_the_slow_path(one, go_on)
        fork(in_order(one.hit, lambda: one.hit("slow"), lambda: one.hit("new"), one.job)).join()
        go_on.set()
        thread.join()
        one.hit("all")
        one.hit("after")

    in_child(run)
    expected = {("all",): 3.0, ("slow",): 2.0, ("new",): 1.0, ("after",): 1.0}
    assert readings.values(registry_dir, "hits_total") == expected


def test_forks_of_several_threads_at_once_leave_no_lock_held(registry_dir: Path) -> None:
    """Each fork waits briefly for the slow path; one that stopped waiting must not take over another's lock."""

    def run() -> None:
        setattr(session, "FORK_WAIT", 0.0001)  # noqa: B010 - a constant to mypy
        one = Worker(registry_dir)
        one.hit("all")

        def forking() -> None:
            for _ in range(25):
                pid = os.fork()
                if pid == 0:
                    run_and_exit(lambda: one.hit("all"))
                os.waitpid(pid, 0)
                one.hit(f"{threading.get_ident()}")

        threads = [threading.Thread(target=forking) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        last = threading.Thread(target=one.hit, args=("last",))
        last.start()
        last.join()

    in_child(run)
    assert total(registry_dir) == 101.0
    assert total(registry_dir, "last") == 1.0


def test_a_fork_in_c_is_noticed_at_the_next_job(registry_dir: Path) -> None:
    """From its next job on, the child has a slot, and its parent keeps its lease."""
    children, times = 4, 20_000

    def record_in_child(one: Worker) -> None:
        one.job()
        one.hit("all", times=times)

    def run() -> None:
        one = Worker(registry_dir)
        one.start("parent's")
        pids = []
        for _ in range(children):
            pid = fork_without_hooks()
            if pid == 0:
                run_and_exit(lambda: record_in_child(one))
            pids.append(pid)
        one.hit("all", times=times)
        for pid in pids:
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert one.writer.slot is not None
        assert one.writer.slot.is_held()
        one.end("parent's")

    in_child(run)
    assert total(registry_dir) == times * (children + 1)
    assert readings.values(registry_dir, "jobs_total") == {("python", "job", "queue", "success"): children + 1}


def test_a_fork_in_c_is_noticed_by_processes_without_jobs(registry_dir: Path) -> None:
    def record_in_child(one: Worker) -> None:
        one.clock.now += 2.0
        one.writer.look()
        one.hit("all", 2.0)
        assert len(slot_files(registry_dir)) == 2

    def run() -> None:
        one = Worker(registry_dir)
        one.hit("all")
        pid = fork_without_hooks()
        if pid == 0:
            run_and_exit(lambda: record_in_child(one))
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        one.hit("all", 4.0)

    in_child(run)
    assert total(registry_dir) == 7.0


@pytest.mark.parametrize("slow", ["writer", "settings", "recorder"])
def test_forking_during_a_threads_first_record(slow: str, registry_dir: Path) -> None:
    """The locks under which a process makes its writer, settings and recorder never hang a child."""

    def run() -> None:
        inside, go_on = threading.Event(), threading.Event()

        def slowly(make: Callable[..., object]) -> Callable[..., object]:
            def made(*arguments: object, **keywords: object) -> object:
                if threading.current_thread() is thread:
                    inside.set()
                    go_on.wait()
                return make(*arguments, **keywords)

            return made

        os.environ["JOBMETRICS_DIR"] = str(registry_dir)
        runtime.use(runtime.Runtime())  # without what an earlier test left in this process
        counter = Counter("first", "Recorded through the active settings.")  # bound to no writer yet
        for module, name, which in [
            (current, "Writer", "writer"), (settings, "read", "settings"), (recorder, "Recorder", "recorder")
        ]:  # fmt: skip
            if slow == which:
                setattr(module, name, slowly(getattr(module, name)))

        def first() -> None:
            recorder.default()
            counter.inc()

        thread = threading.Thread(target=first)
        thread.start()
        inside.wait()
        fork(lambda _: first()).join()
        go_on.set()
        thread.join()

    in_child(run)
    assert readings.values(registry_dir, "first_total") == {(): 2.0}


# ---------------------------------------------------------------- spawn and forkserver


def _recording_process(path: str, n: int) -> None:
    one = Worker(Path(path))
    one.hit("all", 1.0, n)
    one.job(f"job {n}")


@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_other_ways_to_start_a_process(method: str, registry_dir: Path) -> None:
    context = multiprocessing.get_context(method)

    def run() -> None:
        one = Worker(registry_dir)
        one.hit("all", 1.0, 100)
        for _ in range(2):
            started = [context.Process(target=_recording_process, args=(str(registry_dir), n)) for n in range(1, 4)]  # type: ignore[attr-defined]
            for process in started:
                process.start()
            for process in started:
                process.join()
                assert process.exitcode == 0
        one.hit("all")
        _end_helpers()

    in_child(run)
    assert total(registry_dir) == 113.0
    assert sum(readings.values(registry_dir, "jobs_total").values()) == 6.0
    assert len(slot_files(registry_dir)) <= 4
    assert readings.snapshot(registry_dir).live == 0


def _end_helpers() -> None:
    """Stop the processes with which multiprocessing starts others."""
    import multiprocessing.forkserver
    import multiprocessing.resource_tracker

    getattr(multiprocessing.forkserver, "_forkserver")._stop()  # noqa: B009 - not in the stubs
    getattr(multiprocessing.resource_tracker, "_resource_tracker")._stop()  # noqa: B009 - not in the stubs


def test_children_of_a_forkserver_that_has_recorded_have_their_own_slots(registry_dir: Path) -> None:
    """As a forkserver that preloads an application: it records at import, and forks the workers afterwards."""
    with parent(registry_dir) as server:
        server.ask("hit", "all", 1000.0)
        for n in range(1, 11):
            server.ask("fork_and", ("hit", "all", 1.0, n))
        assert total(registry_dir) == 1055.0
        assert len(slot_files(registry_dir)) == 2
        server.leave()
