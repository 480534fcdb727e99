"""All there is to know of one job type, or of a few."""

from __future__ import annotations

from dashboards import assembly, variables
from dashboards.assembly import Row, Spec
from dashboards.panels import (
    COUNT,
    ORANGE,
    QUANTILES,
    RED,
    STATUS_COLOURS,
    Line,
    Panel,
    graph,
    heat,
    number,
    quantiles,
)
from dashboards.promql import (
    BOUND_LABEL,
    HOST_LABEL,
    RATE_INTERVAL,
    SCRAPE_LABELS,
    TIME_RANGE,
    Expr,
    age,
    max_by,
    min_by,
    quantile,
    share,
    sum_by,
)
from jobmetrics import families as f
from jobmetrics.events import FAILURE, SUCCESS

VARIABLES = (
    variables.APPLICATION,
    variables.SYSTEM,
    variables.HOST,
    variables.QUEUE,
    variables.JOB_TYPE,
)
_SCOPE = assembly.scope(VARIABLES)


def spec() -> Spec:
    """The dashboard."""
    return Spec(
        assembly.JOB_TYPE,
        "Job type",
        "One job type, or those chosen above added up: how it ends, how long it takes, what it waits for.",
        VARIABLES,
        [
            Row("Now", _signals()),
            Row("How it ends", _ends()),
            Row("How long it takes", _durations()),
            Row("How long it waits", _waits()),
            Row("What it does", _work()),
        ],
    )


def _signals() -> list[Panel]:
    duration = quantile(0.95, _SCOPE.increase_of_buckets(f.JOBS_DURATION, TIME_RANGE))
    return [
        number(
            "Executions",
            COUNT,
            "Executions that ended in the time range. None: nobody sends it, or nobody runs it; see its queue.",
            sum_by(_SCOPE.increase(f.JOBS, TIME_RANGE)),
            nothing="none",
        ),
        number(
            "Failures in range",
            "percentunit",
            "Share of failures in the time range's executions that succeeded or failed. Red: the error types below say "
            "why.",
            share(
                sum_by(_SCOPE.increase(f.JOBS, TIME_RANGE, status=FAILURE)),
                sum_by(_SCOPE.increase(f.JOBS, TIME_RANGE, status=(SUCCESS, FAILURE))),
            ),
            steps=[(0.01, ORANGE), (0.05, RED)],
            nothing="nothing ran",
        ),
        number(
            "Last success",
            "s",
            "Time since it last succeeded, whenever that was. Longer than the time between two of its runs: it fails, "
            "hangs, waits or is not sent; the rows below say which.",
            age(max_by(_SCOPE.moment(f.JOBS_LAST_SUCCESS))),
            nothing="never seen",
        ),
        number(
            "Duration p95",
            "s",
            "19 of 20 executions of the time range took at most this long. Above what is normal: see the stages.",
            duration,
            nothing="nothing ran",
        ),
        number(
            "Target",
            "s",
            "The declared target duration, the longest of the types chosen. No target: give `timed_job` one.",
            max_by(_SCOPE.gauge(f.JOBS_TARGET_DURATION)),
            nothing="none declared",
        ),
        number(
            "Longest running",
            "s",
            "How long the oldest execution has been running. Far above p99 of the duration: it hangs; stop it in its "
            "job system and give the type a time limit.",
            age(min_by(_SCOPE.moment(f.JOBS_ACTIVE_OLDEST))),
            nothing="none runs",
        ),
    ]


def _ends() -> list[Panel]:
    return [
        graph(
            "Executions by status",
            "ops",
            "Executions that end in a second, by how they ended. More red: see the failures beside it. Purple: the "
            "worker refused them; grey: the code asked to ignore them; blue: an operator stopped them.",
            [Line(sum_by(_SCOPE.rate(f.JOBS), "status"), "{{status}}")],
            stacked=True,
            colours=STATUS_COLOURS,
            nothing="nothing ran",
        ),
        graph(
            "Failures by error type",
            "ops",
            "Failed executions in a second, by exception class. One class since a deployment: its code. A time limit "
            "or a lost worker: the job is too long, or needs more memory than there is.",
            [Line(sum_by(_SCOPE.rate(f.JOBS_FAILURES), "error_type"), "{{error_type}}")],
            stacked=True,
            nothing="nothing failed",
        ),
        graph(
            "Retries",
            "ops",
            "Attempts asked for again in a second. They come in waves: what the job calls is down at times.",
            [Line(sum_by(_SCOPE.rate(f.JOBS_RETRIES), "job_type"), "{{job_type}}")],
            nothing="nothing retried",
        ),
        graph(
            "Withdrawn, by reason",
            "ops",
            "Jobs in a second that never started. expired: they waited too long, so add workers; revoked: an operator "
            "took them back; unknown: a worker lacks code which a producer has, so finish the deployment; rejected: "
            "a message nobody could read.",
            [Line(sum_by(_SCOPE.rate(f.JOBS_WITHDRAWN), "reason"), "{{reason}}")],
            stacked=True,
            nothing="none withdrawn",
        ),
        graph(
            "Within target",
            "percentunit",
            "Share of successes and failures that succeeded within the declared target. It falls: see whether "
            "failures or durations rise.",
            [Line(_within_target(), "{{job_type}}")],
            nothing="no target declared",
        ),
        graph(
            "Executions of unknown duration",
            "ops",
            "Executions in a second whose run time nobody knows, since their worker vanished with them. Many: workers "
            "are killed; see the lost processes on the workers' dashboard.",
            [Line(sum_by(_SCOPE.rate(f.JOBS_DURATION_UNKNOWN), "job_type"), "{{job_type}}")],
            nothing="none",
        ),
    ]


def _within_target() -> Expr:
    within = _SCOPE.rate(f.JOBS_WITHIN_TARGET)
    judged = _SCOPE.rate(f.JOBS, status=(SUCCESS, FAILURE)).where(within, *SCRAPE_LABELS, *f.JOB_LABELS)
    return share(sum_by(within, "job_type"), sum_by(judged, "job_type"))


def _durations() -> list[Panel]:
    buckets = _SCOPE.rate_of_buckets(f.JOBS_DURATION)
    stages = _SCOPE.rate_of_buckets(f.JOBS_STAGE_DURATION)
    mean = sum_by(_SCOPE.rate_of_sum(f.JOBS_DURATION), "job_type") / sum_by(
        _SCOPE.rate_of_count(f.JOBS_DURATION), "job_type"
    ).above(0)
    return [
        quantiles(
            "Duration",
            "Run time of executions, however they ended. p99 alone rises: some hang or have more data; all rise: the "
            "machine, the code or what it calls became slower.",
            {level: quantile(level, buckets) for level in QUANTILES},
            nothing="nothing ran",
        ),
        heat(
            "Spread of durations",
            "s",
            "How many executions took how long. Two bands are two kinds of job under one name; a band that drifts up "
            "grows with its data.",
            sum_by(_SCOPE.increase_of_buckets(f.JOBS_DURATION, RATE_INTERVAL), BOUND_LABEL),
            nothing="nothing ran",
        ),
        graph(
            "Mean duration",
            "s",
            "Run time divided by executions: exact where quantiles are estimates between bucket bounds. Far from p50: "
            "a few long executions take most of the time.",
            [Line(mean, "{{job_type}}")],
            nothing="nothing ran",
        ),
        graph(
            "Stages, p95",
            "s",
            "Run time of the job's named parts. The stage that rose is the one to look into.",
            [Line(quantile(0.95, stages, "job_type", "stage"), "{{job_type}} {{stage}}")],
            width=12,
            nothing="no stages",
        ),
        graph(
            "Time in stages",
            "s",
            "Seconds that stages take of each second, over all executions: where the time goes. A stage that is short "
            "but frequent can weigh more than a long one.",
            [Line(sum_by(_SCOPE.rate_of_sum(f.JOBS_STAGE_DURATION), "job_type", "stage"), "{{job_type}} {{stage}}")],
            width=12,
            stacked=True,
            nothing="no stages",
        ),
    ]


def _waits() -> list[Panel]:
    buckets = _SCOPE.rate_of_buckets(f.JOBS_QUEUE_WAIT)
    return [
        quantiles(
            "Wait in the queue",
            "From the moment a job could have run to its start. It rises: workers are saturated, gone, or busy with "
            "other queues. Only of jobs whose time of publishing is known.",
            {level: quantile(level, buckets) for level in QUANTILES},
            nothing="no wait known",
        ),
        heat(
            "Spread of waits",
            "s",
            "How many jobs waited how long. A second band far above the first: jobs stuck behind long ones; give "
            "either a queue of its own.",
            sum_by(_SCOPE.increase_of_buckets(f.JOBS_QUEUE_WAIT, RATE_INTERVAL), BOUND_LABEL),
            nothing="no wait known",
        ),
        graph(
            "Sent and started",
            "ops",
            "Jobs sent by instrumented producers, and executions ended, in a second. Sent stays above ended: the queue "
            "grows. Ended above sent: a backlog is worked off, attempts are repeated, or a producer is not "
            "instrumented.",
            [
                Line(sum_by(_SCOPE.rate(f.JOBS_PUBLISHED)), "sent"),
                Line(sum_by(_SCOPE.rate(f.JOBS)), "ended"),
            ],
            nothing="none sent, none ended",
        ),
    ]


def _work() -> list[Panel]:
    return [
        graph(
            "Running now",
            "short",
            "Executions running, by host. One host stands out: its workers are slower, or hold jobs that hang.",
            [Line(sum_by(_SCOPE.gauge(f.JOBS_ACTIVE), HOST_LABEL), f"{{{{{HOST_LABEL}}}}}")],
            stacked=True,
            nothing="none runs",
        ),
        graph(
            "Processor time",
            "short",
            "Processors that it keeps busy. Far below the executions running: it waits for something else, so more "
            "workers help; close to it: it computes, and needs more processors.",
            [Line(sum_by(_SCOPE.rate(f.JOBS_CPU), "job_type"), "{{job_type}}")],
            nothing="nothing ran",
        ),
        graph(
            "Items done",
            "cps",
            "Items that jobs report as done, in a second. It falls while executions run: each item takes longer.",
            [Line(sum_by(_SCOPE.rate(f.JOBS_ITEMS_PROCESSED), "job_type"), "{{job_type}}")],
            nothing="no items reported",
        ),
    ]
