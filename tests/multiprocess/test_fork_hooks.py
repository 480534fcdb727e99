"""Invariants 5 and 4, when other threads and signal handlers run between the hooks around a fork."""

from __future__ import annotations

import contextlib
import functools
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from types import FrameType
from typing import Any

import pytest

from jobmetrics.registry import files
from jobmetrics.registry.index import SeriesIndex
from jobmetrics.registry.write import fork_hooks
from jobmetrics.registry.write.session import DirectorySession
from jobmetrics.registry.write.writer import Writer
from tests.multiprocess.support import Child, Worker, child, fork, in_child, in_order, record, serve, slot_files
from tests.support import readings

CALL, C_CALL, RETURN = "call", "c_call", "return"


def at(event: str, function: Any, step: Callable[[], object]) -> None:
    """Run a step once, when this thread next calls a function, returns from it or calls a built-in in it (C_CALL).
    The step is what a signal handler may do there, or another thread that this one waits for."""

    def look(frame: FrameType, seen: str, _: object) -> None:
        if seen == event and frame.f_code is function.__code__:
            sys.setprofile(None)
            step()

    sys.setprofile(look)


def in_new_interpreter(call: str) -> None:
    """Run before concurrent.futures registers its fork hooks: its lock lets forks run only one after another."""
    code = f"from {__name__} import *; in_child(lambda: {call})"
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True)


def parent(path: Path) -> Worker:
    """In the process that forks: the parent and one child have recorded."""
    one = Worker(path)
    one.hit()
    fork(lambda _: one.hit()).join()
    return one


def pause(pipe: Connection) -> None:
    """Wait until the parent sends anything; it may act before that."""
    pipe.send((True, None))
    pipe.recv()


def require_owners(path: Path, *children: Child) -> None:
    found = sorted(owner.pid for owner in readings.snapshot(path).owners)
    assert found == sorted([os.getpid(), *(each.pid for each in children)]), "two processes write to one slot"


def require_no_lock_held(one: Worker) -> None:
    """This thread and another one may record; check first that neither would hang."""
    found: list[bool] = []

    def try_locks() -> None:
        for lock in (one.writer.lock, files.lock):
            found.append(lock.acquire(blocking=False))
            if found[-1]:
                lock.release()

    try_locks()
    assert found == [True, True], "another thread, which may be the parent's, is in the slow path"
    for run in (try_locks, lambda: one.hit("other thread")):
        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        assert found == [True] * 4, "this thread has not left the slow path"
    one.hit("this thread")
    values = readings.values(Path(one.writer.directory.path), "hits_total")
    assert (values["other thread",], values["this thread",]) == (1.0, 1.0)


HOOKS_REGISTERED = """
import os
registered = []
register = os.register_at_fork

def note(**hooks):
    if any(str(getattr(hook, "__module__", "")).startswith("jobmetrics") for hook in hooks.values()):
        registered.append(hooks)
    register(**hooks)

os.register_at_fork = note
import jobmetrics, jobmetrics.celery.plugin, jobmetrics.rq.worker, jobmetrics.recorder, jobmetrics.testing
counter = jobmetrics.Counter("hits", "Counted.")
assert registered == [], "a process that only imports and defines metrics has no hook"
counter.inc()
assert len(registered) == 1, "a process that records has the hooks once"
jobmetrics.configure(dir=os.environ["JOBMETRICS_DIR"] + "/another")
counter.inc()
assert len(registered) == 1, "another writer adds no hook"
"""


def test_no_fork_hook_is_registered_before_something_records(registry_dir: Path) -> None:
    environment = {**os.environ, "JOBMETRICS_DIR": str(registry_dir)}
    subprocess.run([sys.executable, "-c", HOOKS_REGISTERED], env=environment, check=True)


def test_a_thread_that_forks_while_another_ends_its_fork_gives_the_child_another_slot(registry_dir: Path) -> None:
    """The second thread has prepared its fork when the first, which holds the locks, returns from its own fork."""
    in_new_interpreter(f"fork_in_two_threads(Path({str(registry_dir)!r}))")


def fork_in_two_threads(path: Path) -> None:
    one = Worker(path)
    one.hit()
    prepared, back = threading.Event(), threading.Event()

    def second() -> None:
        at(RETURN, fork_hooks.ForkHooks.before, in_order(prepared.set, back.wait))
        fork(lambda _: one.hit("all", 10.0)).join()

    thread = threading.Thread(target=second)
    at(RETURN, DirectorySession.after_fork_in_parent, in_order(thread.start, prepared.wait))
    fork(lambda _: None).join()
    in_order(back.set, thread.join)()
    assert readings.values(path, "hits_total") == {("all",): 11.0}
    assert len(slot_files(path)) == 2, "the second thread's child wrote to its parent's slot"
    require_no_lock_held(one)


@pytest.mark.parametrize("inside", [False, True], ids=["has recorded", "in the slow path"])
def test_a_writer_made_by_another_thread_during_the_hook_works_in_the_child(inside: bool, tmp_path: Path) -> None:
    """Settings are configured again: the hook informs the writers that exist, and this one does not exist yet."""
    anew = tmp_path / "anew"

    def run() -> None:
        Worker(tmp_path / "before").hit()
        made: list[Worker] = []
        ready, forked = threading.Event(), threading.Event()

        def configure_anew() -> None:
            made.append(Worker(anew))
            if inside:
                at(CALL, Writer._bind, in_order(ready.set, forked.wait))
            made[0].hit()
            ready.set()

        thread = threading.Thread(target=configure_anew)
        at(RETURN, fork_hooks.ForkHooks._prepare, in_order(thread.start, ready.wait))
        started = fork(lambda _: require_no_lock_held(made[0]))
        forked.set()
        thread.join()
        started.join()

    in_child(run)
    assert set(readings.values(anew, "hits_total").values()) == {1.0}
    assert len(slot_files(anew)) == 2, "the child wrote to its parent's slot"


@pytest.mark.parametrize(("event", "hook"), [(RETURN, "before"), (CALL, "after_in_parent")])
def test_a_signal_handler_forks_while_its_thread_forks(event: str, hook: str, registry_dir: Path) -> None:
    in_new_interpreter(f"fork_within_fork(Path({str(registry_dir)!r}), {event!r}, {hook!r})")


def fork_within_fork(path: Path, event: str, hook: str) -> None:
    one = parent(path)
    started: list[Child] = []

    def start() -> None:
        started.append(all_children.enter_context(child(lambda pipe: serve(one, pipe))))

    with contextlib.ExitStack() as all_children:
        at(event, getattr(fork_hooks.ForkHooks, hook), start)
        start()
        for each in started:
            each.ask("hit")
        assert len(started) == 2
        require_owners(path, *started)
        require_no_lock_held(one)
    with child(lambda pipe: pipe.send((True, one.writer.session.index is not None))) as after:
        assert after.answer(), "a fork is still prepared"


def test_records_of_a_signal_handler_during_the_hook_wait_until_the_fork_is_over(registry_dir: Path) -> None:
    """The hook was about to read the records that another child had appended to the index."""

    def run() -> None:
        one = parent(registry_dir)
        fork(lambda _: one.hit("other")).join()
        at(CALL, SeriesIndex.feed, lambda: one.hit("handler"))
        fork(lambda _: one.hit()).join()
        assert getattr(one.writer.session.index, "damaged", None) == 0, "the same records were read twice"
        assert readings.values(registry_dir, "hits_total") == {("all",): 3.0, ("other",): 1.0, ("handler",): 1.0}
        require_no_lock_held(one)

    in_child(run)


def test_a_signal_handler_that_starts_a_job_during_the_hook_changes_nothing_for_the_child(registry_dir: Path) -> None:
    """A job's start follows the directory to its new index, and the child's slot belongs to the old one."""

    def run() -> None:
        one = Worker(registry_dir)
        one.hit()

        def wipe_and_start() -> None:
            in_order(*(file.unlink for file in registry_dir.iterdir()), one.later, one.hit)()

        at(RETURN, DirectorySession.before_fork, wipe_and_start)
        with child(lambda pipe: serve(one, pipe)) as started:
            for each in ("later", "hit"):
                getattr(one, each)()
                started.ask(each)
            require_owners(registry_dir, started)
        require_no_lock_held(one)

    in_child(run)


@pytest.mark.parametrize(("event", "function"), [(C_CALL, Writer._bind_to_memory), (CALL, Writer._bind_to_slot)])
def test_a_child_does_not_record_into_its_parents_memory(event: str, function: object, registry_dir: Path) -> None:
    """Also while the parent's memory is being filled or emptied: the series in it are unknown then."""

    def run() -> None:
        one = Worker(registry_dir, propagate_errors=False)
        registry_dir.chmod(0o777)  # so that writers refuse it
        mended = functools.partial(registry_dir.chmod, 0o700)
        at(event, function, lambda: fork(in_order(mended, lambda: one.hit("all", 10.0), one.later)).join())
        in_order(one.hit, mended, one.later)()

    in_child(run)
    assert readings.values(registry_dir, "hits_total") == {("all",): 11.0}


def test_a_dead_childs_gauge_is_gone_when_its_own_child_knew_the_series(registry_dir: Path) -> None:
    """Another process placed the series; the child read it before it forked, and its parent never did."""

    def run(pipe: Connection) -> None:
        one = parent(registry_dir)

        def fork_and_set(there: Connection) -> None:
            one.hit()
            pause(there)
            fork(lambda _: None).join()
            one.level(7.0)

        with child(fork_and_set) as dead:
            dead.answer()
            pause(pipe)
            fork(lambda _: one.hit()).join()  # its slot was the slot of the dead child's child
            dead.pipe.send(None)
            dead.join()
        with child(lambda there: serve(one, there)) as lasting:
            lasting.ask("hit")
            assert readings.values(registry_dir, "level") == {}

    with child(run) as one:
        one.answer()
        record(registry_dir, ("level", 0.0))
        one.pipe.send(None)
        one.join()
