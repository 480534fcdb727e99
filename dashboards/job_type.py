"""Details of one job type, or of a few."""

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
        "One job type, or the sum of the chosen ones: how it ends, how long it takes, how long it waits.",
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
            "Executions that ended in the time range. None: the job is not sent, or no worker runs it; see its queue.",
            sum_by(_SCOPE.increase(f.JOBS, TIME_RANGE)),
            nothing="none",
        ),
        number(
            "Failures in range",
            "percentunit",
            "Share of failures in the time range's executions that succeeded or failed. Red: see the error types "
            "below.",
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
            "Time since its last success, also before the time range. Longer than the time between two runs: it fails, "
            "hangs, waits or is not sent; the rows below show which.",
            age(max_by(_SCOPE.timestamp(f.JOBS_LAST_SUCCESS))),
            nothing="never seen",
        ),
        number(
            "Duration p95",
            "s",
            "19 of 20 executions of the time range took at most this long. Longer than usual: see the stages.",
            duration,
            nothing="nothing ran",
        ),
        number(
            "Target",
            "s",
            "The declared target duration, the longest of the chosen types. No target: pass `target` to `timed_job`.",
            max_by(_SCOPE.gauge(f.JOBS_TARGET_DURATION)),
            nothing="none declared",
        ),
        number(
            "Longest running",
            "s",
            "How long the oldest execution has been running. Far above p99 of the duration: it hangs; stop it in its "
            "job system and give the type a time limit.",
            age(min_by(_SCOPE.timestamp(f.JOBS_ACTIVE_OLDEST))),
            nothing="none runs",
        ),
    ]


def _ends() -> list[Panel]:
    return [
        graph(
            "Executions by status",
            "ops",
            "Executions that end per second, by status. More red: see the panel of failures. Purple: the "
            "worker rejected them; grey: the code asked to ignore them; blue: an operator stopped them.",
            [Line(sum_by(_SCOPE.rate(f.JOBS), "status"), "{{status}}")],
            stacked=True,
            colours=STATUS_COLOURS,
            nothing="nothing ran",
        ),
        graph(
            "Failures by error type",
            "ops",
            "Failed executions per second, by exception class. One class since a deployment: its code. A time limit "
            "or a lost worker: the job is too long, or needs more memory than the host has.",
            [Line(sum_by(_SCOPE.rate(f.JOBS_FAILURES), "error_type"), "{{error_type}}")],
            stacked=True,
            nothing="nothing failed",
        ),
        graph(
            "Retries",
            "ops",
            "Requested further attempts per second, and starts by the number of the attempt. Waves: a service that the "
            "job calls is down at times. Attempt 21+: some jobs are retried for ever; `jobmetrics running` names them.",
            [
                Line(sum_by(_SCOPE.rate(f.JOBS_RETRIES), "job_type"), "{{job_type}}"),
                Line(sum_by(_SCOPE.rate(f.JOBS_ATTEMPTS), "attempt"), "attempt {{attempt}}"),
            ],
            nothing="nothing retried",
        ),
        graph(
            "Withdrawn, by reason",
            "ops",
            "Jobs per second that never started. expired: they waited too long, so add workers; revoked: an operator "
            "withdrew them; unknown: a worker does not have the code, so finish the deployment; rejected: "
            "a message could not be decoded.",
            [Line(sum_by(_SCOPE.rate(f.JOBS_WITHDRAWN), "reason"), "{{reason}}")],
            stacked=True,
            nothing="none withdrawn",
        ),
        graph(
            "Within target",
            "percentunit",
            "Share of successes and failures that succeeded within the declared target. It falls: check whether "
            "failures or durations rise.",
            [Line(_within_target(), "{{job_type}}")],
            nothing="no target declared",
        ),
        graph(
            "Executions of unknown duration",
            "ops",
            "Executions per second with an unknown run time, because their worker was killed. Many: see the lost "
            "processes on the workers' dashboard.",
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
            "Run time of executions, with any status. Only p99 rises: some hang or have more data; all rise: the "
            "machine, the code or a service that it calls became slower.",
            {level: quantile(level, buckets) for level in QUANTILES},
            nothing="nothing ran",
        ),
        heat(
            "Spread of durations",
            "s",
            "Executions by duration. Two bands: two kinds of job have one name; a band that drifts up: the job "
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
            "Run time of the job's named parts. It rises: look into the stage that rose.",
            [Line(quantile(0.95, stages, "job_type", "stage"), "{{job_type}} {{stage}}")],
            width=12,
            nothing="no stages",
        ),
        graph(
            "Time in stages",
            "s",
            "Seconds per second in each stage, over all executions. A stage that is short "
            "but frequent can take more time than a long one.",
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
            "Time from when a job could have run to its start. It rises: workers are saturated, gone, or busy with "
            "other queues. Only for jobs with a known time of publishing.",
            {level: quantile(level, buckets) for level in QUANTILES},
            nothing="no wait known",
        ),
        heat(
            "Spread of waits",
            "s",
            "Jobs by wait. A second band far above the first: jobs wait behind long ones; move "
            "the long ones to a separate queue.",
            sum_by(_SCOPE.increase_of_buckets(f.JOBS_QUEUE_WAIT, RATE_INTERVAL), BOUND_LABEL),
            nothing="no wait known",
        ),
        graph(
            "Sent and started",
            "ops",
            "Jobs sent by instrumented producers, and executions ended, per second. Sent stays above ended: the queue "
            "grows. Ended above sent: a backlog shrinks, attempts are repeated, or a producer is not "
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
            "Processors that the job keeps busy. Far below the running executions: it waits, so more "
            "workers help; close to them: it computes, and needs more processors.",
            [Line(sum_by(_SCOPE.rate(f.JOBS_CPU), "job_type"), "{{job_type}}")],
            nothing="nothing ran",
        ),
        graph(
            "Items done",
            "cps",
            "Items that jobs report as done, per second. It falls while executions run: each item takes longer.",
            [Line(sum_by(_SCOPE.rate(f.JOBS_ITEMS_PROCESSED), "job_type"), "{{job_type}}")],
            nothing="no items reported",
        ),
    ]
