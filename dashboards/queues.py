"""Waiting jobs, whether workers take them, and when the queues will be empty."""

from __future__ import annotations

from dashboards import assembly, variables
from dashboards.assembly import Row, Spec
from dashboards.panels import COUNT, ORANGE, QUANTILES, RED, Column, Line, Panel, graph, number, quantiles, rows
from dashboards.promql import APPLICATION_LABEL, Expr, age, max_by, min_by, quantile, sum_by
from jobmetrics import families as f

VARIABLES = (
    variables.APPLICATION,
    variables.SYSTEM,
    variables.BROKER,
    variables.QUEUE,
)
_SCOPE = assembly.scope(VARIABLES)
_LEGEND = "{{system}} {{broker}} {{queue_name}}"
_TREND = "15m"


def spec() -> Spec:
    """The dashboard."""
    return Spec(
        assembly.QUEUES,
        "Queues",
        "Waiting jobs, their age, and whether workers take them. Each queue counts once, even if several exporters "
        "read its broker.",
        VARIABLES,
        [
            Row("Now", _signals()),
            Row("Waiting", _waiting()),
            Row("Taken", _taken()),
            Row("Set aside and scheduled", _set_aside()),
            Row("Queue by queue", [_table()]),
        ],
    )


def _signals() -> list[Panel]:
    orphaned, overdue = _SCOPE.gauge(f.JOBS_QUEUE_ORPHANED), _SCOPE.gauge(f.JOBS_QUEUE_OVERDUE)
    return [
        number(
            "Jobs waiting",
            COUNT,
            "Jobs in the chosen queues. The number alone is neither good nor bad: look at age and drain time.",
            sum_by(_SCOPE.gauge(f.JOBS_QUEUE_DEPTH)),
            nothing="no queue read",
        ),
        number(
            "Oldest waiting job",
            "s",
            "How long the job next to run has been waiting, in the queue with the longest wait. Red: that queue has no "
            "consumers, or too few.",
            max_by(age(min_by(_SCOPE.timestamp(f.JOBS_QUEUE_OLDEST), *f.QUEUE_LABELS))),
            steps=[(60, ORANGE), (600, RED)],
            nothing="none waits",
        ),
        number(
            "Waiting without consumer",
            COUNT,
            "Jobs in queues without a consumer; if the broker does not report consumers, of systems without a worker. "
            "Red: start workers for these queues; the table below names them.",
            sum_by(_unattended()),
            steps=[(1, RED)],
            nothing="none",
        ),
        number(
            "Orphaned",
            COUNT,
            "Started jobs without a living worker. Red: they will not end by themselves; RQ's maintenance moves them "
            "to the failed registry when a worker starts or runs it.",
            sum_by(orphaned),
            steps=[(1, RED)],
            nothing="none known",
        ),
        number(
            "Overdue",
            COUNT,
            "Scheduled jobs past their time. Red: no scheduler runs for the queue; start a worker with its scheduler.",
            sum_by(overdue),
            steps=[(1, ORANGE), (10, RED)],
            nothing="none known",
        ),
        number(
            "Unacknowledged",
            COUNT,
            "Jobs delivered to workers and not acknowledged: running, prefetched, or waiting for their ETA. Much more "
            "than the workers' capacity: a lower prefetch distributes them better.",
            sum_by(_SCOPE.gauge(f.JOBS_QUEUE_UNACKNOWLEDGED)),
            nothing="not reported",
        ),
    ]


def _unattended() -> Expr:
    """Jobs of queues without a consumer.

    If the broker does not report consumers: jobs of systems that have had workers and have none now. A queue is absent
    if neither is known.
    """
    depth = _SCOPE.gauge(f.JOBS_QUEUE_DEPTH)
    no_consumer = _SCOPE.gauge(f.JOBS_QUEUE_CONSUMERS).equals(0)
    no_workers = sum_by(_SCOPE.gauge(f.JOBS_WORKERS), APPLICATION_LABEL, "system").only(0)
    return (depth * no_consumer).or_else(depth.where(no_workers, APPLICATION_LABEL, "system"))


def _waiting() -> list[Panel]:
    wait = _SCOPE.rate_of_buckets(f.JOBS_QUEUE_WAIT)
    done = sum_by(_SCOPE.rate(f.JOBS), "system", "queue_name")
    drain = sum_by(_SCOPE.gauge(f.JOBS_QUEUE_DEPTH), "system", "queue_name") / done.above(0)
    return [
        graph(
            "Depth",
            "short",
            "Jobs waiting. It grows steadily: more jobs are sent than done. It jumps: a batch was sent. A line that "
            "ends: the broker cannot be read, which is not the same as an empty queue.",
            [Line(sum_by(_SCOPE.gauge(f.JOBS_QUEUE_DEPTH), *f.QUEUE_LABELS), _LEGEND)],
            width=12,
            nothing="no queue read",
        ),
        graph(
            "Age of the oldest job",
            "s",
            "How long the job next to run has been waiting. It grows by a second per second: no worker takes from that "
            "queue. Absent when the queue is empty or the broker does not report it.",
            [Line(age(min_by(_SCOPE.timestamp(f.JOBS_QUEUE_OLDEST), *f.QUEUE_LABELS)), _LEGEND)],
            width=12,
            nothing="none waits",
        ),
        graph(
            "Time to drain",
            "s",
            "Depth divided by the executions that end per second: the time until the queue is empty if no job is "
            "added. Too long: add workers. No line: no job of the queue ends.",
            [Line(drain, "{{system}} {{queue_name}}")],
            width=8,
            nothing="nothing ends",
        ),
        quantiles(
            "Wait in the queue",
            "Time from when a job could have run to its start, of jobs that started. It shows past waits; the oldest "
            "job's age shows the present.",
            {level: quantile(level, wait) for level in QUANTILES},
            nothing="no wait known",
        ),
        graph(
            "Wait by queue, p95",
            "s",
            "Waits of jobs by queue. One queue stands out: give it dedicated workers.",
            [Line(quantile(0.95, wait, "system", "queue_name"), "{{system}} {{queue_name}}")],
            nothing="no wait known",
        ),
    ]


def _taken() -> list[Panel]:
    by = ("system", "queue_name")
    return [
        graph(
            "Sent and ended",
            "ops",
            "Jobs sent by instrumented producers and executions ended, per second. Sent stays above ended: the queue "
            "grows.",
            [
                Line(sum_by(_SCOPE.rate(f.JOBS_PUBLISHED), *by), "{{system}} {{queue_name}} sent"),
                Line(sum_by(_SCOPE.rate(f.JOBS), *by), "{{system}} {{queue_name}} ended"),
            ],
            nothing="none sent, none ended",
        ),
        graph(
            "Consumers",
            "short",
            "Workers listening on the queue, as the broker reports them. None: start workers, or check whether they "
            "lost their connection.",
            [Line(_SCOPE.gauge(f.JOBS_QUEUE_CONSUMERS), _LEGEND)],
            nothing="not reported",
        ),
        graph(
            "Reserved, unacknowledged",
            "short",
            "Jobs that workers have taken and not started (prefetched, or waiting for their ETA), and all delivered "
            "jobs without acknowledgement. High while other workers idle: lower the prefetch.",
            [
                Line(sum_by(_SCOPE.gauge(f.JOBS_RESERVED), *by), "{{system}} {{queue_name}} reserved"),
                Line(
                    sum_by(_SCOPE.gauge(f.JOBS_QUEUE_UNACKNOWLEDGED), "system", "broker"),
                    "{{system}} {{broker}} unacknowledged",
                ),
            ],
            nothing="none taken",
        ),
    ]


def _set_aside() -> list[Panel]:
    late = age(min_by(_SCOPE.timestamp(f.JOBS_QUEUE_OVERDUE_OLDEST), *f.QUEUE_LABELS))
    return [
        graph(
            "Jobs by state",
            "short",
            "Jobs in RQ's registries. failed grows: look at the jobs, then requeue or delete them. deferred grows: "
            "the jobs that they depend on do not end. finished grows without bound: shorten the life of results.",
            [Line(sum_by(_SCOPE.gauge(f.JOBS_QUEUE_JOBS), "queue_name", "state"), "{{queue_name}} {{state}}")],
            width=12,
            nothing="no registries",
        ),
        graph(
            "Orphaned and overdue",
            "short",
            "Started jobs without a living worker, and scheduled jobs past their time. One stays above zero: see "
            "the figures at the top.",
            [
                Line(_SCOPE.gauge(f.JOBS_QUEUE_ORPHANED), f"{_LEGEND} orphaned"),
                Line(_SCOPE.gauge(f.JOBS_QUEUE_OVERDUE), f"{_LEGEND} overdue"),
            ],
            width=12,
            nothing="none known",
        ),
        graph(
            "Delay of scheduled jobs",
            "s",
            "Delay of the most overdue scheduled job. It grows by a second per second: no scheduler runs.",
            [Line(late, _LEGEND)],
            width=12,
            nothing="none overdue",
        ),
        graph(
            "Schedulers",
            "short",
            "Schedulers that queue the queue's scheduled jobs. None: start a worker with its scheduler.",
            [Line(_SCOPE.gauge(f.JOBS_QUEUE_SCHEDULERS), _LEGEND)],
            width=12,
            nothing="not reported",
        ),
    ]


def _table() -> Panel:
    by = {"system": "System", "broker": "Broker", "queue_name": "Queue"}
    trend = sum_by(_SCOPE.trend(f.JOBS_QUEUE_DEPTH, _TREND), *by)
    return rows(
        "Queues by depth",
        f"Each queue now, the deepest on top. Trend is the change in jobs per second over the last {_TREND}. Act first "
        "on queues with a positive trend and no consumers.",
        by,
        [
            Column("Waiting", COUNT, sum_by(_SCOPE.gauge(f.JOBS_QUEUE_DEPTH), *by)),
            Column("Trend", "cps", trend, [(0.01, ORANGE)]),
            Column(
                "Oldest",
                "s",
                age(min_by(_SCOPE.timestamp(f.JOBS_QUEUE_OLDEST), *by)),
                [(60, ORANGE), (600, RED)],
            ),
            Column("Consumers", COUNT, sum_by(_SCOPE.gauge(f.JOBS_QUEUE_CONSUMERS), *by)),
            Column("Without consumer", COUNT, sum_by(_unattended(), *by), [(1, RED)]),
        ],
        nothing="no queue read",
    )
