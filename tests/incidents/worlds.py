"""The worlds of the staged run: each is one application with one trouble, or with none.

Times are minutes. A world's limit is the time from the start of its trouble to its alert, as rules and runbook give it.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tests.incidents.staging import Stage

Change = Callable[[Stage], None]


@dataclass(frozen=True)
class Stream:
    """Jobs of one kind that are sent again and again.

    every: seconds between two sendings; 0 sends once. burst: jobs sent at a time. fail: the share that raises. delay:
    seconds until RQ's scheduler queues the job.
    """

    job: str = "resize"
    every: float = 2.0
    queue: str = "mail"
    system: str = "celery"
    arguments: Mapping[str, Any] = field(default_factory=dict)
    burst: int = 1
    fail: float = 0.0
    delay: float = 0.0


@dataclass(frozen=True)
class Usual:
    """The history of a job type before the run, written into Prometheus. every: seconds between two executions."""

    seconds: float = 0.11  # a job that sleeps for 0.1 takes a little longer
    every: float = 2.0
    fail: float = 0.0
    job: str = "resize"
    system: str = "celery"


@dataclass(frozen=True)
class World:
    """An application, its trouble and what has to be reported.

    expected: the alerts, and how many minutes each may take; none for a world that stays silent. consequences: alerts
    that may fire too and may be sent. suppressed: alerts that may fire too and that Alertmanager may not send. ends:
    minutes of the rule's window after the mend, for which the alerts may still fire. lasts: minutes before the
    trouble is mended. again: minutes after which the trouble is repeated until it is reported. visible: whether
    `jobmetrics check` on the host can know the trouble. queues: those that a Celery exporter is given. reads_queues:
    whether the exporter is given the broker.
    """

    name: str
    processes: Mapping[str, tuple[str, ...]]
    traffic: tuple[Stream, ...]
    trouble: Change | None = None
    mend: Change | None = None
    expected: Mapping[str, float] = field(default_factory=dict)
    consequences: tuple[str, ...] = ()
    suppressed: tuple[str, ...] = ()
    ends: float = 0.0
    lasts: float = 0.0
    again: float = 0.0
    visible: bool = True
    usual: Usual | None = None
    queues: tuple[str, ...] = ("mail",)
    environment: Mapping[str, str] = field(default_factory=dict)
    own_redis: bool = False
    reads_queues: bool = True

    @property
    def takes(self) -> float:
        """Minutes from the start of the trouble until every expected alert has to be there."""
        return max(self.expected.values(), default=0.0)


def celery(*options: str, queues: str = "mail") -> tuple[str, ...]:
    """A Celery worker with two processes, or as the options say."""
    command = ("celery", "-A", "tests.incidents.celery_app", "worker", "--queues", queues, "--concurrency", "2")
    return (*command, "--without-gossip", "--without-mingle", "--loglevel", "WARNING", *options)


def rq(*options: str) -> tuple[str, ...]:
    """An RQ worker. The broker forgets it three minutes after its last heartbeat."""
    command = ("rq.cli", "worker", "--url", "REDIS_URL", "--worker-class", "jobmetrics.rq.Worker")
    return (*command, "--worker-ttl", "120", *options)


BEAT = ("celery", "-A", "tests.incidents.celery_app", "beat", "--schedule", "FOLDER/schedule", "--loglevel", "WARNING")
CRON = ("rq.cli", "cron", "--url", "REDIS_URL", "tests.incidents.cron")
CELERY, RQ = {"worker": celery()}, {"worker": rq("mail")}
STEADY = (Stream(arguments={"seconds": 0.1}),)
STEADY_RQ = (Stream(system="rq", every=5.0, arguments={"seconds": 0.1}),)


def sending(*streams: Stream) -> Change:
    """Send these jobs instead of the world's traffic."""
    return lambda stage: stage.send(streams)


def also(*streams: Stream) -> Change:
    """Send these jobs beside the world's traffic."""
    return lambda stage: stage.send((*stage.traffic, *streams))


def killed(*names: str) -> Change:
    """Kill processes with their children, as a lack of memory does."""
    return _each(lambda stage, name: stage.end(name, signal.SIGKILL), names)


def ended(*names: str) -> Change:
    """End processes as an operator does."""
    return _each(lambda stage, name: stage.end(name), names)


def started(*names: str) -> Change:
    return _each(lambda stage, name: stage.start(name), names)


def _each(do: Callable[[Stage, str], None], names: Sequence[str]) -> Change:
    def change(stage: Stage) -> None:
        for name in names:
            do(stage, name)

    return change


def restarted(name: str, number: int = signal.SIGKILL) -> Change:
    def change(stage: Stage) -> None:
        stage.end(name, signal.Signals(number))
        stage.start(name)

    return change


def restarted_as(name: str, other: str) -> Change:
    def change(stage: Stage) -> None:
        stage.end(name)
        stage.start(other)

    return change


def as_before(stage: Stage) -> None:
    """Send the world's own traffic, and release jobs that wait."""
    stage.release()
    stage.send(stage.traffic)


def _replace_directory(stage: Stage) -> None:
    """Put a file where the directory was: workers would make a missing directory again."""
    stage.directory.rename(stage.directory.with_name("moved"))
    stage.directory.touch()


def _put_back_directory(stage: Stage) -> None:
    stage.directory.unlink()
    stage.directory.with_name("moved").rename(stage.directory)


def _break_host(stage: Stage) -> None:
    """Start the troubled process, and then let it run a job at a time."""
    if stage.runs("troubled"):
        stage.write("troubled", "")
    else:
        stage.start("troubled")


def _mend_host(stage: Stage) -> None:
    stage.end("troubled")
    (stage.directory / "slot-00099").unlink(missing_ok=True)


def _redis_killed(stage: Stage) -> None:
    assert stage.redis is not None
    stage.redis.kill()


def _redis_started(stage: Stage) -> None:
    assert stage.redis is not None
    stage.redis.start()


WORLDS = (
    # Healthy, to the end of the run.
    World(
        "healthy-celery", {"worker": celery(), "beat": BEAT},
        (
            Stream(fail=0.01), Stream("call_partner", 30.0, arguments={"succeed": True}),
            Stream("pay", arguments={"seconds": 0.1}),
        ),
        usual=Usual(fail=0.01),
    ),
    World(
        "healthy-rq", {"worker": rq("--with-scheduler", "mail", "reports"), "cron": CRON},
        (*STEADY_RQ, Stream("report", 30.0, "reports", "rq", {"seconds": 5.0}, delay=20.0)),
        usual=Usual(system="rq", every=5.0),
    ),
    World(
        "healthy-deploys", {"worker": celery(), "reports": celery(queues="reports")},
        (*STEADY, Stream("report", 20.0, "reports", burst=5, arguments={"seconds": 1.0})),
        trouble=restarted("worker", signal.SIGTERM), again=10.0, queues=("mail", "reports"),
    ),
    # No trouble, though it was once reported as one.
    World(
        "cron-replaced", {**RQ, "cron": CRON}, STEADY_RQ, trouble=restarted("cron"),
    ),
    World(  # jobs that run when Prometheus samples them
        "busy-when-sampled", {"worker": celery("--concurrency", "1")},
        (Stream(every=15.0, burst=3, arguments={"seconds": 2.7}),),
    ),
    # Workers.
    World(
        "worker-restarts", CELERY, STEADY, restarted("worker"), lambda _: None, {"JobWorkersRestarting": 14.0},
        again=2.5, ends=16.0,
    ),
    World(
        "workers-gone", CELERY, STEADY, killed("worker"), started("worker"), {"JobWorkersGone": 6.5},
        suppressed=(
            "JobWorkersGoneFromHost", "JobQueueOld", "JobQueueUnattended", "JobsPublishedToNowhere",
            "JobWorkersSaturated", "JobmetricsRecordingOff", "JobStopped",
        ),
        lasts=20.0,
    ),
    World(
        "rq-queue-left", {"worker": rq("mail"), "reports": rq("reports")},
        (*STEADY_RQ, Stream(system="rq", queue="reports", every=20.0)), killed("reports"), started("reports"),
        {"JobQueueUnattended": 15.0}, suppressed=("JobQueueOld",), lasts=17.0, queues=("mail", "reports"),
    ),
    World(
        "half-deadlocked", CELERY, STEADY, also(Stream(every=0, arguments={"hold": True})), as_before,
        {"JobStuck": 12.5}, usual=Usual(), ends=1.0,
    ),
    World(
        "all-deadlocked", CELERY, STEADY, also(Stream(every=0, burst=2, arguments={"hold": True})), as_before,
        {"JobWorkersStuck": 12.5}, suppressed=("JobStuck", "JobQueueOld", "JobQueueUnattended", "JobWorkersSaturated"),
        usual=Usual(), ends=1.0,
    ),
    World(
        "saturated", {"worker": celery("--concurrency", "1")}, (Stream(every=3.0, arguments={"seconds": 1.0}),),
        sending(Stream(every=0.9, arguments={"seconds": 1.0})), sending(), {"JobWorkersSaturated": 21.0},
        consequences=("JobQueueOld",), ends=16.0,
    ),
    World(
        "jobs-killed", CELERY, STEADY, also(Stream("crash", 20.0)), as_before, {"JobWorkerProcessesLost": 1.5},
        consequences=("JobFailureRatioHigh", "JobNoSuccess"), ends=16.0,
    ),
    # Jobs.
    World(
        "slow-job", {"worker": celery("--concurrency", "4")}, STEADY,
        sending(Stream(every=5.0, arguments={"seconds": 8.0})), as_before, {"JobSlow": 13.0},
        usual=Usual(), visible=False, ends=6.0,
    ),
    World(
        "more-failures", CELERY, (Stream(every=0.5, fail=0.01, arguments={"seconds": 0.01}),),
        sending(Stream(every=0.5, fail=0.04, arguments={"seconds": 0.01})), as_before, {"JobFailureRatioUnusual": 14.0},
        usual=Usual(0.011, 0.5, 0.01), visible=False, ends=16.0,
    ),
    World(
        "job-fails", CELERY, STEADY, sending(Stream(fail=1.0)), as_before, {"JobFailureRatioHigh": 7.5},
        suppressed=("JobFailureRatioUnusual",), ends=16.0,
    ),
    World(
        "slow-retries", CELERY, STEADY, also(Stream("call_partner", 0, burst=5)), as_before, {"JobRetryStorm": 16.0},
        consequences=("JobNoSuccess",), ends=16.0,
    ),
    World(
        "endless-retries", CELERY, (*STEADY, Stream("call_partner", 2.0, arguments={"succeed": True})),
        also(Stream("call_partner", 0, arguments={"countdown": 10.0})), as_before, {"JobRetriesEndless": 6.0},
        ends=31.0,
    ),
    World(
        "jobs-discarded", CELERY, STEADY, also(Stream("forgotten", 0)), as_before, {"JobsDiscarded": 1.5},
        visible=False, ends=16.0,
    ),
    World(
        "target-missed", CELERY, (Stream("pay", arguments={"seconds": 0.1}),),
        sending(Stream("pay", arguments={"seconds": 1.0})), as_before, {"JobTargetBurningFast": 4.0},
        suppressed=("JobTargetBurningSlowly",), visible=False, ends=31.0,
    ),
    # Queues and schedules.
    World(
        "queue-misspelt", {"worker": celery(queues="reports")}, (Stream(queue="reports"),),
        also(Stream(queue="reprots", every=30.0)), started("remedy"), {"JobQueueUnattended": 12.0},
        suppressed=("JobQueueOld",), queues=("reports",),
    ),
    World(
        "queue-unread", {"worker": celery(queues="reports")}, (Stream(queue="reports"),),
        also(Stream(queue="reprots", every=30.0)), started("remedy"), {"JobsPublishedToNowhere": 12.0},
        reads_queues=False,
    ),
    World(
        "queue-old", RQ, STEADY_RQ, also(Stream(system="rq", every=0, burst=40, arguments={"seconds": 30.0})),
        started("second", "third", "fourth"), {"JobQueueOld": 17.0}, consequences=("JobWorkersSaturated",), ends=1.0,
    ),
    World(
        "beat-down", {**CELERY, "beat": BEAT}, STEADY, ended("beat"), started("beat"), {"JobSchedulerDown": 12.0},
        ends=1.0,
    ),
    World(
        "cron-down", {**RQ, "cron": CRON}, STEADY_RQ, killed("cron"), started("cron"), {"RqCronLate": 12.0}, ends=1.0,
    ),
    World(
        "rq-scheduler-down", {"worker": rq("mail"), "scheduler": rq("--with-scheduler", "mail")},
        (*STEADY_RQ, Stream(system="rq", every=30.0, delay=20.0)), ended("scheduler"), started("scheduler"),
        {"RqSchedulerLate": 12.0}, ends=1.0,
    ),
    # The monitoring itself.
    World("exporter-down", CELERY, STEADY, killed("exporter"), started("exporter"), {"JobmetricsExporterDown": 6.5}),
    World(
        "broker-down", CELERY, STEADY, _redis_killed, _redis_started, {"JobmetricsCollectorDown": 6.5}, own_redis=True,
    ),
    World(
        "recording-off", {}, STEADY_RQ, started("unrecorded"), restarted_as("unrecorded", "second"),
        {"JobmetricsRecordingOff": 16.5}, visible=False, ends=3.5,  # RQ forgets the worker after three minutes
    ),
    World(
        "directory-down", CELERY, STEADY, _replace_directory, _put_back_directory, {"JobmetricsDirectoryDown": 11.5},
        # Whether workers that are not seen are alive is not known; what they could not record is an error of theirs.
        consequences=("JobWorkersGone", "JobWorkersGoneFromHost", "JobmetricsInternalErrors"), ends=1.0,
    ),
    World(
        "label-bomb", CELERY, STEADY, also(Stream(arguments={"customers": 50})), as_before,
        {"JobmetricsSeriesDropped": 3.0}, suppressed=("JobmetricsSeriesNearLimit",), ends=16.0,
        environment={"JOBMETRICS_MAX_SERIES": "1000"},
    ),
    World(
        "troubled-host", CELERY, STEADY, _break_host, _mend_host,
        {
            "JobmetricsUpdatesDropped": 2.0, "JobmetricsInternalErrors": 2.0, "JobmetricsSeriesDropped": 2.0,
            "JobmetricsSlotsDamaged": 12.0,
        },
        suppressed=("JobmetricsSeriesNearLimit",), again=0.5, ends=16.0, environment={"JOBMETRICS_MAX_SERIES": "1000"},
    ),
)  # fmt: skip

# Alerts that no world expects, and why.
UNSTAGED = {
    "JobNoSuccess": "six hours; a new job type that fails raises JobFailureRatioHigh before",
    "JobStopped": "a week of history, and hours",
    "JobTargetBurningSlowly": "six hours of misses, after JobTargetBurningFast",
    "JobWorkersGoneFromHost": "a world has one host",
    "JobScheduleEntryLate": "beat sends late entries when it is back; promtool tests it",
    "JobmetricsAbsent": "all worlds would have to lose their exporters",
    "JobmetricsClockSetBack": "the clock of the machine is left alone",
    "JobmetricsSeriesNearLimit": "a consequence in label-bomb",
}

# Processes that a trouble or its mend starts, by name.
LATER: Mapping[str, tuple[str, ...]] = {
    "remedy": celery(queues="reprots"),
    "troubled": ("tests.e2e.troubled_host",),
    "unrecorded": ("rq.cli", "worker", "--url", "REDIS_URL", "--worker-ttl", "120", "mail"),
    "second": rq("mail"),
    "third": rq("mail"),
    "fourth": rq("mail"),
}
