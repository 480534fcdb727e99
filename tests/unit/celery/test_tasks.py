from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from celery.worker.request import Request

from jobmetrics import recorder, runtime
from jobmetrics.celery import lost_tasks, requests, signals, tasks
from jobmetrics.celery.messages import PUBLISHED_AT
from jobmetrics.job_context import current_execution
from jobmetrics.registry.journal import Entry
from jobmetrics.settings import Settings
from tests.support.readings import active, assert_durations_add_up, counts, values
from tests.unit.doubles import die


class Task:
    """A task with the attributes that the handlers use."""

    name = "app.task"
    app = None

    def __init__(self, task_id: str = "1", **more: Any) -> None:
        delivery = {"exchange": "", "routing_key": "jobs", "redelivered": more.pop("redelivered", False)}
        self.request = SimpleNamespace(
            retries=0,
            id=task_id, delivery_info=delivery, headers=None, eta=None, is_eager=False, **more
        )  # fmt: skip


@pytest.fixture(autouse=True)
def clean(active_settings: Settings) -> Iterator[None]:
    yield
    die(recorder.default().writer)


def statuses(path: Path) -> dict[str, float]:
    return {labels[3]: value for labels, value in values(path, "jobs_total").items()}


def errors(path: Path) -> dict[str, float]:
    return {labels[3]: value for labels, value in values(path, "jobs_failures_total").items()}


def run(task: Task, state: str | None, retval: Any = None) -> None:
    tasks.prerun(task=task, task_id=task.request.id)
    tasks.postrun(task=task, task_id=task.request.id, state=state, retval=retval)


def raising(task: Task, error: BaseException) -> None:
    """Raise as in Celery's tracer, which sends the signal in a `finally`."""
    tasks.prerun(task=task, task_id=task.request.id)
    try:
        try:
            raise error
        finally:
            tasks.postrun(task=task, task_id=task.request.id, state=None)
    except BaseException:  # noqa: BLE001 - exits are what is tested
        pass


@pytest.mark.parametrize(
    ("state", "status"),
    [
        ("SUCCESS", "success"),
        ("FAILURE", "failure"),
        ("RETRY", "retry"),
        ("IGNORED", "ignored"),
        ("REJECTED", "rejected"),
    ],
)
def test_each_state_of_celery_is_a_status(state: str, status: str, registry_dir: Path) -> None:
    run(Task(), state, ValueError())
    assert statuses(registry_dir) == {status: 1}
    assert active(registry_dir) == {}
    assert runtime.state(requests.RunningTasks).executions == {}
    assert_durations_add_up(registry_dir)


def test_eager_tasks_are_not_recorded(registry_dir: Path) -> None:
    task = Task()
    task.request.is_eager = True
    run(task, "SUCCESS")
    assert statuses(registry_dir) == {}


def test_second_postrun_is_not_counted(registry_dir: Path) -> None:
    task = Task()
    run(task, "SUCCESS")
    tasks.postrun(task=task, task_id="1", state="FAILURE")
    assert statuses(registry_dir) == {"success": 1}


def test_the_running_execution_is_in_the_context() -> None:
    task = Task()
    tasks.prerun(task=task, task_id="1")
    found = current_execution()
    assert found is not None
    assert found.job.job_type == "app.task"
    tasks.postrun(task=task, task_id="1", state="SUCCESS")
    assert current_execution() is None


def test_an_eager_run_under_a_running_tasks_id_does_not_end_its_execution(registry_dir: Path) -> None:
    task, eager = Task(), Task()
    eager.request.is_eager = True
    outer: dict[str, int] = {}
    inner: dict[str, int] = {}
    tasks.prerun(task=task, task_id="1", kwargs=outer)
    tasks.prerun(task=eager, task_id="1", kwargs=inner)
    tasks.postrun(task=eager, task_id="1", state="FAILURE", kwargs=inner)
    assert current_execution() is not None
    tasks.postrun(task=task, task_id="1", state="SUCCESS", kwargs=outer)
    assert statuses(registry_dir) == {"success": 1}


def test_two_deliveries_of_one_task_may_run_at_once(registry_dir: Path) -> None:
    deliveries: list[tuple[Task, dict[str, int]]] = [(Task(), {}), (Task(), {})]
    for task, kwargs in deliveries:
        tasks.prerun(task=task, task_id="1", kwargs=kwargs)
    for (task, kwargs), state in zip(deliveries, ("FAILURE", "SUCCESS"), strict=True):
        tasks.postrun(task=task, task_id="1", state=state, retval=ValueError(), kwargs=kwargs)
    assert statuses(registry_dir) == {"failure": 1, "success": 1}
    assert active(registry_dir) == {}


def test_a_redelivery_keeps_the_old_stamp_and_shows_no_wait(registry_dir: Path) -> None:
    run(Task(redelivered=True, **{PUBLISHED_AT: "1.0"}), "SUCCESS")
    assert counts(registry_dir, "jobs_queue_wait_seconds") == {}
    run(Task(**{PUBLISHED_AT: "1.0"}), "SUCCESS")
    assert counts(registry_dir, "jobs_queue_wait_seconds") == {("celery", "app.task", "jobs"): 1}


@pytest.mark.parametrize("error", [SystemExit(3), SystemExit("bye"), SystemExit(), KeyboardInterrupt()])
def test_an_exit_raised_by_the_task_is_a_failure(error: BaseException, registry_dir: Path) -> None:
    raising(Task(), error)
    assert errors(registry_dir) == {type(error).__name__: 1}
    assert active(registry_dir) == {}


@pytest.mark.parametrize("signum", [1, 15])
def test_a_terminated_process_leaves_the_end_to_its_parent(signum: int, registry_dir: Path) -> None:
    raising(Task(), SystemExit(-(256 - signum)))
    assert statuses(registry_dir) == {}
    assert sum(active(registry_dir).values()) == 1  # until the process is gone


def test_each_exit_of_a_greenlet_has_its_status(registry_dir: Path) -> None:
    gevent = pytest.importorskip("gevent")
    raising(Task("1"), gevent.Timeout(1))
    raising(Task("2"), gevent.GreenletExit())
    assert statuses(registry_dir) == {"failure": 1}
    lost_tasks.count_pending()
    assert statuses(registry_dir) == {"failure": 1, "revoked": 1}
    assert errors(registry_dir) == {"TimeLimitExceeded": 1}


@pytest.mark.parametrize("reported_first", [True, False])
def test_a_killed_greenlet_counts_as_what_celery_killed_it_for(reported_first: bool, registry_dir: Path) -> None:
    gevent = pytest.importorskip("gevent")
    task = Task()
    tasks.prerun(task=task, task_id="1")
    if reported_first:
        lost_tasks.retry(sender=task, request=Task().request)
    try:
        raise gevent.GreenletExit
    except gevent.GreenletExit:
        tasks.postrun(task=task, task_id="1", state=None)
    if not reported_first:
        lost_tasks.retry(sender=task, request=Task().request)
    lost_tasks.count_pending()
    assert statuses(registry_dir) == {"retry": 1}
    assert active(registry_dir) == {}


@pytest.fixture
def instrumented() -> Iterator[None]:
    signals.connect()
    yield
    signals.disconnect()


@pytest.mark.parametrize(("how", "status"), [("cancel", "retry"), ("terminate", "revoked")])
def test_a_killed_greenlet_waits_for_its_reason_while_its_result_is_stored(
    how: str, status: str, instrumented: None, registry_dir: Path
) -> None:
    request = Cancelled()
    getattr(request, how)(pool=request)
    assert statuses(registry_dir) == {status: 1}
    assert values(registry_dir, "jobs_withdrawn_total") == {}
    assert active(registry_dir) == {}
    assert runtime.state(lost_tasks.LostTasks).announcing == []


def test_a_worker_that_ends_waits_for_no_reason(instrumented: None, registry_dir: Path) -> None:
    request = Cancelled(final=True)
    request.cancel(pool=request)
    assert statuses(registry_dir) == {"revoked": 1}


def test_a_cancellation_that_fails_leaves_nothing_behind(instrumented: None, registry_dir: Path) -> None:
    request = Cancelled()
    vars(request._task)["on_retry"] = None
    with pytest.raises(TypeError):
        request.cancel(pool=request)
    assert runtime.state(lost_tasks.LostTasks).announcing == []
    assert active(registry_dir) != {}
    lost_tasks.count_pending()
    assert statuses(registry_dir) == {"revoked": 1}


def test_wrapped_errors_show_what_was_raised() -> None:
    class UnpickleableExceptionWrapper(Exception):
        exc_cls_name = "Hidden"

    class ExceptionWithTraceback(Exception):
        exc = KeyError("inner")

    assert requests.unwrapped(UnpickleableExceptionWrapper()) == "Hidden"
    assert isinstance(requests.unwrapped(ExceptionWithTraceback()), KeyError)
    assert requests.unwrapped("no error") is None


# ------------------------------------------------------------------ reports of the main process


def report_failure(task: Task, error: BaseException) -> None:
    lost_tasks.failure(sender=task, task_id=task.request.id, exception=error)


def pretend(monkeypatch: pytest.MonkeyPatch, *entries: Entry) -> None:
    """Make the journals return these entries for every execution."""
    monkeypatch.setattr(type(recorder.default().writer), "find_execution", lambda *_: list(entries))


class Received(Request):
    """A request of the main process, without its message."""

    def __init__(self, task_id: str = "1") -> None:
        self.id = task_id
        self._delivery_info = {"exchange": "", "routing_key": "jobs"}
        self._request_dict: dict[str, object] = {}

    def on_failure(self, *_: object, **__: object) -> None:
        """Send the failure as Celery does: with a task that has no request."""
        task = Task()
        task.request.delivery_info = None
        lost_tasks.failure(sender=task, task_id="1", exception=ValueError())


class Cancelled(Received):
    """A request of a greenlet: the kill takes effect where its result store is asked, and then a worker samples."""

    time_start = 1.0
    _eventer = None
    _args = _kwargs = ()
    _ignore_result = False

    def __init__(self, *, final: bool = False) -> None:
        super().__init__()
        self._task = Task()
        vars(self._task).update(backend=self, on_retry=lambda *_: None, ignore_result=False)
        self._context = self._task.request
        self._on_ack = lambda *_: None
        self._connection_errors = ()
        self.final = final

    def terminate_job(self, *_: object) -> None:
        """As gevent's pool does it: the greenlet is killed later."""

    def mark_as_retry(self, *_: object, **__: object) -> None:
        gevent = pytest.importorskip("gevent")
        raising(self._task, gevent.GreenletExit())
        lost_tasks.count_pending(final=self.final)

    mark_as_revoked = mark_as_retry


RUNNING = Entry(1, 5.0, 0.0, 0, running=True, lost=False)
LOST = Entry(1, 5.0, 0.0, 0, running=False, lost=True)
ENDED = Entry(1, 5.0, 6.0, 0, running=False, lost=False)


def test_a_failure_of_a_running_task_is_left_to_its_postrun(registry_dir: Path) -> None:
    task = Task()
    tasks.prerun(task=task, task_id="1")
    report_failure(task, ValueError())
    assert statuses(registry_dir) == {}
    tasks.postrun(task=task, task_id="1", state="FAILURE", retval=ValueError())
    assert errors(registry_dir) == {"ValueError": 1}


def test_a_failure_reported_after_the_end_is_not_counted_again(registry_dir: Path) -> None:
    task = Task()
    run(task, "SUCCESS")
    report_failure(task, RuntimeError("the result could not be stored"))
    assert statuses(registry_dir) == {"success": 1}


def test_an_end_reported_while_the_task_runs_counts_once_it_is_gone(
    registry_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from celery.exceptions import TimeLimitExceeded

    pretend(monkeypatch, RUNNING)
    for _ in range(2):  # Celery 5.7 sends it twice
        report_failure(Task(), TimeLimitExceeded(1))
    lost_tasks.count_pending()
    assert statuses(registry_dir) == {}
    pretend(monkeypatch, LOST)
    lost_tasks.count_pending()
    lost_tasks.count_pending()
    assert errors(registry_dir) == {"TimeLimitExceeded": 1}


def test_a_task_that_ended_by_itself_meanwhile_is_not_counted_again(
    registry_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, RUNNING)
    task = Task()
    lost_tasks.revoked(sender=task, request=task.request, terminated=True)
    pretend(monkeypatch, ENDED)
    lost_tasks.count_pending()
    assert statuses(registry_dir) == {}
    assert values(registry_dir, "jobs_withdrawn_total") == {}


def test_killed_before_it_started_is_withdrawn(registry_dir: Path) -> None:
    task = Task()
    lost_tasks.revoked(sender=task, request=task.request, terminated=True)
    assert values(registry_dir, "jobs_withdrawn_total") == {("celery", "app.task", "jobs", "revoked"): 1}


def test_a_redelivery_counts_a_first_execution_that_died(registry_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, LOST)
    run(Task(redelivered=True), "SUCCESS")
    assert statuses(registry_dir) == {"failure": 1, "success": 1}
    assert values(registry_dir, "jobs_worker_processes_lost_total") == {("celery",): 1}


def test_a_redelivery_of_a_running_task_counts_nothing(registry_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, RUNNING)
    run(Task(redelivered=True), "SUCCESS")
    assert statuses(registry_dir) == {"success": 1}


def test_rejected_tasks_are_not_failures_if_the_main_process_reports_one(registry_dir: Path) -> None:
    from celery.exceptions import Reject

    report_failure(Task(), Reject("no"))
    assert statuses(registry_dir) == {}


def test_a_redelivery_leaves_a_pending_report_to_the_main_process(
    registry_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pretend(monkeypatch, RUNNING)
    task = Task(redelivered=True)
    lost_tasks.retry(sender=task, request=task.request)
    request = Received()
    lost_tasks.received(request=request)
    pretend(monkeypatch, LOST)
    vars(task.request).update(request.request_dict)
    with monkeypatch.context() as child:
        # The pool process does not know what its main process has not counted yet.
        child.setattr(runtime.state(lost_tasks.LostTasks), "pending", {})
        run(task, "SUCCESS")
    assert statuses(registry_dir) == {"success": 1}
    lost_tasks.count_pending()
    assert statuses(registry_dir) == {"retry": 1, "success": 1}


@pytest.mark.parametrize(("task_id", "queue"), [("1", "jobs"), ("another", "unknown")])
def test_a_failure_reported_without_its_request_has_its_queue(registry_dir: Path, task_id: str, queue: str) -> None:
    Received(task_id).on_failure()
    assert values(registry_dir, "jobs_failures_total") == {("celery", "app.task", queue, "ValueError"): 1}


def test_only_a_task_with_a_pending_report_is_marked(monkeypatch: pytest.MonkeyPatch) -> None:
    pretend(monkeypatch, RUNNING)
    task = Task()
    lost_tasks.retry(sender=task, request=task.request)
    again, other, later = Received(), Received("2"), Received()
    for request in (again, other):
        lost_tasks.received(request=request)
    assert again.request_dict == {lost_tasks.REPORT_PENDING: True}
    assert other.request_dict == {}
    pretend(monkeypatch, ENDED)
    lost_tasks.count_pending()
    lost_tasks.received(request=later)
    assert later.request_dict == {}


def test_unknown_tasks_and_messages_share_one_job_type(registry_dir: Path) -> None:
    message = SimpleNamespace(delivery_info={"exchange": "", "routing_key": "jobs"})
    lost_tasks.unknown(message=message, name="anything")
    lost_tasks.rejected(message=message)
    lost_tasks.rejected(message=SimpleNamespace(delivery_info=None))
    assert values(registry_dir, "jobs_withdrawn_total") == {
        ("celery", "unknown", "jobs", "unknown"): 1,
        ("celery", "unknown", "jobs", "rejected"): 1,
        ("celery", "unknown", "unknown", "rejected"): 1,
    }
