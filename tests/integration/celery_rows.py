"""The truth table: each way a Celery task can end, what is sent for it, and how each pool counts it."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta, timezone
from typing import Any

import celery
from celery import chain, chord, group
from celery.canvas import xmap
from kombu import Producer

from jobmetrics import conformance
from tests.integration.celery_workers import TASKS, Worker, adds
from tests.support.readings import active, until

Labels = dict[tuple[str, ...], int]
CELERY = tuple(int(part) for part in celery.__version__.split(".")[:2])

PREFORK, THREADS, SOLO, GEVENT = "prefork", "threads", "solo", "gevent"
IN_PROCESS = (THREADS, SOLO, GEVENT)
POOLS = (PREFORK, *IN_PROCESS)


@dataclass(frozen=True)
class Row:
    """One row: an action, and the exact counts it adds. ends: by task and status; the others by task and label."""

    name: str
    act: Callable[[Worker], None]
    ends: Labels = field(default_factory=dict)
    failures: Labels = field(default_factory=dict)
    withdrawn: Labels = field(default_factory=dict)
    retries: Labels = field(default_factory=dict)
    lost: int = 0
    pools: tuple[str, ...] = POOLS
    since: tuple[int, ...] = (5, 3)


def _send(task: str, *args: object, **options: object) -> Callable[[Worker], None]:
    return lambda worker: worker.send(task, *args, **options) and None


def _simple(
    task: str, status: str, *pools: str, lost: int = 0, error: str = "", since: tuple[int, ...] = (5, 3)
) -> Row:
    failures: Labels = {(task, error): 1} if error else {}
    name = f"{task}-{error}" if error else task
    return Row(name, _send(task), {(task, status): 1}, failures, lost=lost, pools=pools or POOLS, since=since)


def _expired(worker: Worker) -> None:
    worker.send("succeed", expires=datetime.now(timezone.utc) - timedelta(minutes=1))


def _revoke(worker: Worker) -> None:
    task_id = str(uuid.uuid4())
    worker.app.control.revoke(task_id, reply=True, timeout=10, limit=1)
    worker.send("succeed", task_id=task_id)


def _terminate(signal_name: str) -> Callable[[Worker], None]:
    def act(worker: Worker) -> None:
        before = worker.started()["wait"]
        sent = worker.send("wait")
        labels = ("celery", f"{TASKS}.wait", "jobs")
        # Active is not enough: the task is counted from its signal on, and writes its line later.
        until(lambda: worker.started()["wait"] > before, "the task's own line")
        until(lambda: active(worker.directory).get(labels) == 1, "the task to run")
        worker.app.control.revoke(sent.id, terminate=True, signal=signal_name)

    return act


def _raw(body: bytes, **headers: object) -> Callable[[Worker], None]:
    def act(worker: Worker) -> None:
        with worker.app.connection_for_write() as connection:
            Producer(connection).publish(
                body,
                routing_key="jobs",
                headers=headers,
                content_type="application/json",
                content_encoding="utf-8",
            )

    return act


def _twice(task: str, times: int) -> Callable[[Worker], None]:
    def act(worker: Worker) -> None:
        for _ in range(times):
            worker.send(task)

    return act


def _canvas(make: Callable[[Callable[..., Any]], Any]) -> Callable[[Worker], None]:
    """Send a canvas of the worker's tasks; make gets a function name, *arguments -> signature."""

    def act(worker: Worker) -> None:
        def signature(task: str, *args: object) -> Any:
            return worker.app.signature(f"{TASKS}.{task}", args=args)

        make(signature).apply_async()

    return act


ROWS = (
    Row("success", _twice("succeed", 3), {("succeed", "success"): 3}),
    _simple("fail", "failure", error="ValueError"),
    _simple("throw", "failure", error="KeyError"),
    Row("retry, then success", _send("retry", True), {("retry", "retry"): 2, ("retry", "success"): 1},
        retries={("retry",): 2}),
    Row("retry until it fails", _send("retry", False), {("retry", "retry"): 2, ("retry", "failure"): 1},
        {("retry", "KeyError"): 1}, retries={("retry",): 2}),
    Row("autoretry", _send("autoretry"), {("autoretry", "retry"): 1, ("autoretry", "failure"): 1},
        {("autoretry", "ConnectionError"): 1}, retries={("autoretry",): 1}),
    _simple("ignore", "ignored"),
    Row("replace", _send("replace"), {("replace", "ignored"): 1, ("succeed", "success"): 1}),
    _simple("reject", "rejected"),
    Row("reject and requeue", _send("reject_once"), {("reject_once", "rejected"): 1, ("reject_once", "success"): 1}),
    Row("soft limit", _send("soft_limit", 120), {("soft_limit", "failure"): 1},
        {("soft_limit", "SoftTimeLimitExceeded"): 1}, pools=(PREFORK,)),
    Row("soft limit that the pool ignores", _send("soft_limit", 2), {("soft_limit", "success"): 1}, pools=IN_PROCESS),
    Row("hard limit", _send("hard_limit", 120), {("hard_limit", "failure"): 1},
        {("hard_limit", "TimeLimitExceeded"): 1}, pools=(PREFORK, GEVENT)),
    Row("hard limit that the pool ignores", _send("hard_limit", 2), {("hard_limit", "success"): 1},
        pools=(THREADS, SOLO)),
    Row("hard limit by SIGKILL", _send("hard_limit_deaf"), {("hard_limit_deaf", "failure"): 1},
        {("hard_limit_deaf", "TimeLimitExceeded"): 1}, pools=(PREFORK,)),
    _simple("kill_itself", "failure", PREFORK, lost=1, error="WorkerLostError"),
    _simple("leave", "failure", PREFORK, lost=1, error="WorkerLostError"),
    _simple("killed_after_its_end", "success", PREFORK, lost=1),
    Row("lost, rejected and run again", _send("lost_once"), {("lost_once", "failure"): 1, ("lost_once", "success"): 1},
        {("lost_once", "WorkerLostError"): 1}, lost=1, pools=(PREFORK,)),
    Row("lost and retried", _send("lost_and_retried"),
        {("lost_and_retried", "retry"): 1, ("lost_and_retried", "success"): 1},
        retries={("lost_and_retried",): 1}, lost=1, pools=(PREFORK,), since=(5, 7)),
    _simple("system_exit", "failure", PREFORK, THREADS, GEVENT, error="SystemExit"),
    _simple("interrupt", "failure", PREFORK, THREADS, error="KeyboardInterrupt"),
    Row("expired", _expired, withdrawn={("succeed", "expired"): 1}),
    Row("revoked before it started", _revoke, withdrawn={("succeed", "revoked"): 1}),
    Row("terminated by TERM", _terminate("TERM"), {("wait", "revoked"): 1}, pools=(PREFORK,)),
    Row("terminated by KILL", _terminate("KILL"), {("wait", "revoked"): 1}, pools=(PREFORK,)),
    Row("greenlet terminated by TERM", _terminate("TERM"), {("wait", "revoked"): 1}, pools=(GEVENT,), since=(5, 5)),
    Row("greenlet terminated by KILL", _terminate("KILL"), {("wait", "revoked"): 1}, pools=(GEVENT,), since=(5, 5)),
    Row("unknown task", _send("not.registered"), withdrawn={("unknown", "unknown"): 1}),
    Row("undecodable body", _raw(b"{no json", task=f"{TASKS}.succeed", id="undecodable"),
        withdrawn={("unknown", "rejected"): 1}),
    Row("no task's message", _raw(b'"hello"', id="none"), withdrawn={("unknown", "rejected"): 1}),
    Row("eager", _send("eager"), {("eager", "success"): 1}),
    _simple("store_fails", "success"),
    _simple("hostile_error", "failure", error="HostileError"),
    _simple("unpicklable_error", "failure", error="UnpicklableError"),
    Row("shadow name", _send("succeed", shadow="not/what {it} is"), {("succeed", "success"): 1}),
    Row("hostile name", _send('tests."quoted"\n{name}\\é.' + "x" * 300), {("hostile_name", "success"): 1}),
    Row("chain", _canvas(lambda s: chain(s("add", 1), s("add", 2), s("add", 3))), {("add", "success"): 3}),
    Row("group", _canvas(lambda s: group(s("add", n) for n in range(4))), {("add", "success"): 4}),
    Row("chord", _canvas(lambda s: chord([s("add", n) for n in range(3)], s("add"))), {("add", "success"): 4}),
    Row("chord with a retried member", _canvas(lambda s: chord([s("add", 1), s("retry_once", 2)], s("add"))),
        {("add", "success"): 2, ("retry_once", "retry"): 1, ("retry_once", "success"): 1},
        retries={("retry_once",): 1}),
    Row("map", _canvas(lambda s: xmap(s("quiet"), [1, 2, 3], app=s("quiet").app)), {("map", "success"): 1}),
    Row("link", _canvas(lambda s: s("add", 1).set(link=s("add", 2))), {("add", "success"): 2}),
    Row("link_error", _canvas(lambda s: s("fail").set(link_error=s("errback"))),
        {("fail", "failure"): 1, ("errback", "success"): 1}, {("fail", "ValueError"): 1}),
    Row("a megabyte", _send("swallow", "x" * 1_000_000), {("swallow", "success"): 1}),
)  # fmt: skip


# These end before a pool gets the task, or in the same way in every process that runs tasks.
ALIKE = frozenset({
    "throw-KeyError", "retry until it fails", "autoretry", "replace", "unknown task", "undecodable body",
    "no task's message", "store_fails", "shadow name", "hostile name", "chain", "group", "chord with a retried member",
    "map", "link", "link_error", "a megabyte",
})  # fmt: skip

# These depend on what a child inherits, or does not inherit when spawned, and on what the main process learns.
OF_CHILDREN = frozenset({
    "success", "fail-ValueError", "retry, then success", "ignore", "soft limit", "hard limit by SIGKILL",
    "kill_itself-WorkerLostError", "killed_after_its_end", "lost, rejected and run again", "system_exit-SystemExit",
    "terminated by TERM", "terminated by KILL", "eager", "hostile_error-HostileError",
    "unpicklable_error-UnpicklableError", "chord",
})  # fmt: skip

# These depend on the broker: acknowledgement, rejection, redelivery. RabbitMQ drops an expired message itself,
# so no worker receives it.
OF_BROKERS = frozenset({
    "success", "fail-ValueError", "retry, then success", "reject", "reject and requeue", "kill_itself-WorkerLostError",
    "lost, rejected and run again", "lost and retried", "revoked before it started", "terminated by KILL",
    "unknown task", "undecodable body", "no task's message", "hostile name", "chord", "link_error", "a megabyte",
})  # fmt: skip


def rows(pool: str) -> list[Row]:
    """The rows of a pool with the installed Celery."""
    return [row for row in ROWS if pool in row.pools and row.since <= CELERY]


def some(pool: str, names: frozenset[str]) -> list[Row]:
    """The rows of a pool with these names."""
    assert names <= {row.name for row in ROWS}
    return [row for row in rows(pool) if row.name in names]


def differing(pool: str) -> list[Row]:
    """The rows that a pool other than prefork may count differently."""
    return some(pool, frozenset(row.name for row in ROWS) - ALIKE)


def check(worker: Worker, row: Row) -> None:
    """Do the row's action; exactly its counts are added."""
    with adds(
        worker,
        ends=row.ends,
        failures=row.failures,
        withdrawn=row.withdrawn,
        retries=row.retries,
        lost=row.lost,
    ):
        row.act(worker)


# ---------------------------------------------------------------- the truth table that all job systems share


SHARED: dict[str, tuple[Callable[[Worker], None], str]] = {
    "success": (_send("succeed"), ""),
    "failure": (_send("fail"), "ValueError"),
    "retry": (_send("retry_once", 1), ""),
    "ignored": (_send("ignore"), ""),
    "rejected": (_send("reject"), ""),
    "revoked": (_terminate("KILL"), ""),
    "killed": (_send("kill_itself"), "WorkerLostError"),
    "killed after its end": (_send("killed_after_its_end"), ""),
    "expired": (_expired, ""),
    "revoked before its start": (_revoke, ""),
    "unknown": (_send("not.registered"), ""),
}
OF_PREFORK_ONLY = frozenset({"revoked", "killed", "killed after its end"})


def shared(pool: str) -> list[conformance.Case]:
    """The cases of jobmetrics.conformance that this pool has."""
    return conformance.cases(*(name for name in SHARED if pool == PREFORK or name not in OF_PREFORK_ONLY))


def check_shared(worker: Worker, case: conformance.Case) -> None:
    """Do the case's action; exactly its counts are added."""
    act, error = SHARED[case.name]
    conformance.check(case, lambda: act(worker), system="celery", directory=str(worker.directory), error=error)
    worker.assert_consistent()


def check_running(worker: Worker) -> None:
    """A held task is active, and its run time is the one the test measured."""
    conformance.check_running(
        lambda: worker.send("hold_acknowledged"), worker.release, system="celery", directory=str(worker.directory)
    )
    worker.hold_again()
