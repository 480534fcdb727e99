"""Whether workers live, how busy they are, and whether schedulers send what is due."""

from __future__ import annotations

from dashboards import assembly, variables
from dashboards.assembly import Row, Spec
from dashboards.panels import COUNT, GREEN, ORANGE, RED, Column, Line, Panel, graph, number, rows
from dashboards.promql import HOST_LABEL, RATE_INTERVAL, TIME_RANGE, Expr, age, max_by, min_by, share, sum_by, until
from jobmetrics import families as f

VARIABLES = (
    variables.APPLICATION,
    variables.SYSTEM,
    variables.HOST,
    variables.BROKER,
)
_SCOPE = assembly.scope(VARIABLES)
_BY_HOST = (HOST_LABEL, "system")
_HOST_LEGEND = f"{{{{{HOST_LABEL}}}}} {{{{system}}}}"
_BROKER_LEGEND = "{{system}} {{broker}}"


def spec() -> Spec:
    """The dashboard."""
    return Spec(
        assembly.WORKERS,
        "Workers",
        "Whether workers live, host by host and as their brokers see them, how busy they are, and whether schedulers "
        "send what is due.",
        VARIABLES,
        [
            Row("Now", _signals()),
            Row("Host by host", _hosts()),
            Row("As brokers see them", _registered()),
            Row("Schedules", _schedules()),
        ],
    )


def _busy(*labels: str) -> Expr:
    active = sum_by(_SCOPE.gauge(f.JOBS_ACTIVE), *labels)
    return share(active, sum_by(_SCOPE.gauge(f.JOBS_WORKER_CAPACITY), *labels))


def _signals() -> list[Panel]:
    return [
        number(
            "Workers alive",
            COUNT,
            "Workers that live and record. Red: all have stopped, or cannot write to the registry directory; start "
            "them, then run `jobmetrics check` on the host.",
            sum_by(_SCOPE.gauge(f.JOBS_WORKERS)),
            steps=[(1, GREEN)],
            below=RED,
            nothing="none seen",
        ),
        number(
            "Capacity",
            COUNT,
            "Jobs that the living workers can run at once: the sum of pool sizes; one per RQ worker. Less than you "
            "started: some have died.",
            sum_by(_SCOPE.gauge(f.JOBS_WORKER_CAPACITY)),
            nothing="none seen",
        ),
        number(
            "Saturation",
            "percentunit",
            "Running executions as a share of capacity, on the host with the highest share. Red on all hosts with a "
            "growing queue: too few workers. Red on one host: its workers are slower or hold jobs that hang.",
            max_by(_busy(*_BY_HOST)),
            steps=[(0.8, ORANGE), (0.95, RED)],
            nothing="no workers",
        ),
        number(
            "Worker processes lost",
            COUNT,
            "Worker processes that died in a job in the time range. Red: the kernel's log shows whether memory ran "
            "out; a crash leaves a trace in the worker's log.",
            sum_by(_SCOPE.increase(f.JOBS_WORKER_PROCESSES_LOST, TIME_RANGE)),
            steps=[(1, RED)],
            nothing="none",
        ),
        number(
            "Stale workers",
            COUNT,
            "Workers known to the broker with an expired heartbeat. Red: they were killed or hang, or their host "
            "is cut off; their jobs are orphaned.",
            sum_by(_SCOPE.gauge(f.JOBS_REGISTERED_WORKERS_STALE)),
            steps=[(1, RED)],
            nothing="not reported",
        ),
        number(
            "Resident memory",
            "bytes",
            "Memory of all worker processes; shared pages count in each. It climbs from day to day: a leak; "
            "let processes end after a number of jobs while you look for it.",
            sum_by(_SCOPE.gauge(f.WORKER_RESIDENT_MEMORY)),
            nothing="not known",
        ),
    ]


def _hosts() -> list[Panel]:
    lost = sum_by(_SCOPE.rate(f.JOBS_WORKER_PROCESSES_LOST), *_BY_HOST)
    starts = sum_by(_SCOPE.increase(f.JOBS_WORKER_STARTS, RATE_INTERVAL), *_BY_HOST)
    killed = sum_by(_SCOPE.increase(f.JOBS_WORKERS_LOST, RATE_INTERVAL), *_BY_HOST)
    return [
        graph(
            "Workers",
            "short",
            "Living workers. An unexpected step down: see the service manager's log on that host.",
            [Line(sum_by(_SCOPE.gauge(f.JOBS_WORKERS), *_BY_HOST), _HOST_LEGEND)],
            nothing="none seen",
        ),
        graph(
            "Starts and losses",
            "short",
            "Workers that started, workers that ended without a shutdown, and executions of killed processes without a "
            "recorded end. Both lines again and again: something kills and restarts the workers; see the kernel's log.",
            [
                Line(starts, f"{_HOST_LEGEND} started"),
                Line(killed, f"{_HOST_LEGEND} lost"),
                Line(sum_by(_SCOPE.gauge(f.JOBS_UNRESOLVED), *_BY_HOST), f"{_HOST_LEGEND} unresolved executions"),
            ],
            nothing="none started",
        ),
        graph(
            "Running, and capacity",
            "short",
            "Running executions and capacity. The lines meet: saturated.",
            [
                Line(sum_by(_SCOPE.gauge(f.JOBS_ACTIVE), *_BY_HOST), f"{_HOST_LEGEND} running"),
                Line(sum_by(_SCOPE.gauge(f.JOBS_WORKER_CAPACITY), *_BY_HOST), f"{_HOST_LEGEND} capacity"),
            ],
            nothing="none seen",
        ),
        graph(
            "Saturation by host",
            "percentunit",
            "Running as a share of capacity. Above the dashed line for a long time, with a growing queue: add workers.",
            [Line(_busy(*_BY_HOST), _HOST_LEGEND)],
            limit=0.95,
            nothing="no workers",
        ),
        graph(
            "Executions ended",
            "ops",
            "Executions that end per second. One host below the others at the same capacity: it is slower, or stuck.",
            [Line(sum_by(_SCOPE.rate(f.JOBS), *_BY_HOST), _HOST_LEGEND)],
            nothing="nothing ran",
        ),
        graph(
            "Processor time",
            "short",
            "Processors that jobs keep busy. As many as the host has: more workers there do not help.",
            [Line(sum_by(_SCOPE.rate(f.JOBS_CPU), *_BY_HOST), _HOST_LEGEND)],
            nothing="nothing ran",
        ),
        graph(
            "Memory of worker processes",
            "bytes",
            "Resident memory. A sawtooth that rises: a leak. A sharp drop: processes were killed or replaced.",
            [Line(sum_by(_SCOPE.gauge(f.WORKER_RESIDENT_MEMORY), *_BY_HOST), _HOST_LEGEND)],
            nothing="not known",
        ),
        graph(
            "Processes lost",
            "ops",
            "Worker processes that died in a job, per second. In bursts: memory runs out when certain jobs coincide.",
            [Line(lost, _HOST_LEGEND)],
            nothing="none lost",
        ),
        graph(
            "Reserved by host",
            "short",
            "Jobs taken from the broker and not started. One host holds many while others idle: lower the prefetch.",
            [Line(sum_by(_SCOPE.gauge(f.JOBS_RESERVED), *_BY_HOST), _HOST_LEGEND)],
            nothing="none taken",
        ),
    ]


def _registered() -> list[Panel]:
    silent = age(min_by(_SCOPE.timestamp(f.JOBS_REGISTERED_WORKERS_HEARTBEAT), "system", "broker"))
    return [
        graph(
            "Registered workers by state",
            "short",
            "Workers known to the broker. More than living workers: some run on hosts without an exporter, or are "
            "stale.",
            [Line(sum_by(_SCOPE.gauge(f.JOBS_REGISTERED_WORKERS), "state"), "{{state}}")],
            stacked=True,
            nothing="not reported",
        ),
        graph(
            "Longest silence of a worker",
            "s",
            "Time since the oldest last heartbeat of a worker. It grows by a second per second: that worker "
            "is gone or hangs.",
            [Line(silent, _BROKER_LEGEND)],
            nothing="not reported",
        ),
        graph(
            "Stale workers by broker",
            "short",
            "Workers with an expired heartbeat. They stay: clean up their registrations after their jobs.",
            [Line(_SCOPE.gauge(f.JOBS_REGISTERED_WORKERS_STALE), _BROKER_LEGEND)],
            nothing="not reported",
        ),
    ]


def _schedules() -> list[Panel]:
    by = {"system": "System", "schedule_entry": "Entry"}
    due = max_by(_SCOPE.timestamp(f.JOBS_SCHEDULE_NEXT_DUE), *by)
    return [
        rows(
            "Schedule entries",
            "The entries of beat's schedule, the most overdue on top. All are overdue: beat has stopped. One entry: it "
            "is disabled, or was removed and its old record remains.",
            by,
            [
                Column("Overdue", "s", age(due), [(60, ORANGE), (300, RED)]),
                Column("Due in", "s", until(due)),
                Column("Last sent", "s", age(max_by(_SCOPE.timestamp(f.JOBS_SCHEDULE_LAST_SENT), *by))),
                Column("Sent late by", "s", max_by(_SCOPE.gauge(f.JOBS_SCHEDULE_LATENESS), *by), [(5, ORANGE)]),
            ],
            nothing="no schedule",
        ),
        graph(
            "Sent late by",
            "s",
            "Delay of the last sending of an entry. It rises for all: beat is overloaded, or its broker is slow.",
            [Line(max_by(_SCOPE.gauge(f.JOBS_SCHEDULE_LATENESS), "schedule_entry"), "{{schedule_entry}}")],
            nothing="no schedule",
        ),
        graph(
            "Cron schedulers",
            "short",
            "RQ's cron schedulers known to the broker. None: start one if you use cron. More than one: "
            "jobs are sent twice, unless each has different jobs.",
            [Line(_SCOPE.gauge(f.JOBS_CRON_SCHEDULERS), _BROKER_LEGEND)],
            nothing="not reported",
        ),
        graph(
            "Cron silence and delay",
            "s",
            "Time since the oldest last heartbeat of a cron scheduler, and the delay of its next job. "
            "One grows by a second per second: the scheduler is gone or hangs.",
            [
                Line(age(_SCOPE.timestamp(f.JOBS_CRON_HEARTBEAT)), f"{_BROKER_LEGEND} silent"),
                Line(age(_SCOPE.timestamp(f.JOBS_CRON_NEXT)), f"{_BROKER_LEGEND} overdue"),
            ],
            nothing="no cron scheduler",
        ),
    ]
