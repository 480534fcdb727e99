"""Is anything wrong, and where: the first dashboard to open."""

from __future__ import annotations

from dashboards import assembly, variables
from dashboards.assembly import Row, Spec, link
from dashboards.panels import (
    COUNT,
    GREEN,
    ORANGE,
    QUANTILES,
    RED,
    STATUS_COLOURS,
    Column,
    Line,
    Panel,
    graph,
    number,
    quantiles,
    rows,
)
from dashboards.promql import TIME_RANGE, age, max_by, min_by, quantile, share, sum_by, top
from jobmetrics import families as f
from jobmetrics.events import FAILURE, RETRY, SUCCESS

VARIABLES = (
    variables.APPLICATION,
    variables.SYSTEM,
    variables.HOST,
    variables.BROKER,
    variables.QUEUE,
    variables.JOB_TYPE,
)
_SCOPE = assembly.scope(VARIABLES)
DECIDED = (SUCCESS, FAILURE)  # the statuses that a failure ratio compares
_LINES = 10  # lines in a graph that could have any number of them

_TO_JOB_TYPE = link(
    "Details of this job type",
    assembly.JOB_TYPE,
    (variables.APPLICATION, variables.HOST, variables.QUEUE),
    system="${__data.fields.System}",
    job_type="${__value.raw}",
)
_LINE_TO_JOB_TYPE = link(
    "Details of this job type",
    assembly.JOB_TYPE,
    (variables.APPLICATION, variables.HOST, variables.SYSTEM, variables.QUEUE),
    job_type="${__field.labels.job_type}",
)
_LINE_TO_QUEUE = link(
    "Details of this queue",
    assembly.QUEUES,
    (variables.APPLICATION, variables.SYSTEM, variables.BROKER),
    queue="${__field.labels.queue_name}",
)


def spec() -> Spec:
    """The dashboard."""
    return Spec(
        assembly.OVERVIEW,
        "Overview",
        "Is anything wrong with the jobs, and where? Red in the first rows shows a problem; links lead to details.",
        VARIABLES,
        [
            Row("Is anything wrong?", [*_signals(), _alerts()]),
            Row("How jobs end", _ends()),
            Row("How long they take and wait", _times()),
            Row("Where they pile up", _piles()),
            Row("Job types", [_job_types()]),
        ],
    )


def _signals() -> list[Panel]:
    oldest_queued = _SCOPE.timestamp(f.JOBS_QUEUE_OLDEST)
    busy = share(
        sum_by(_SCOPE.gauge(f.JOBS_ACTIVE), "system"),
        sum_by(_SCOPE.gauge(f.JOBS_WORKER_CAPACITY), "system"),
    )
    beat_overdue = age(max_by(_SCOPE.timestamp(f.JOBS_SCHEDULE_NEXT_DUE), "system", "schedule_entry"))
    cron_overdue = age(_SCOPE.timestamp(f.JOBS_CRON_NEXT))
    unscraped = sum_by(_SCOPE.scraped(f.BUILD_INFO, "1d").equals(0))
    unread = sum_by(_SCOPE.gauge(f.COLLECTOR_UP).equals(0)).or_else(unscraped * 0)
    no_directory = sum_by(_SCOPE.gauge(f.DIRECTORY_UP).equals(0)).or_else(unscraped * 0)
    return [
        number(
            "Failures",
            "percentunit",
            "Share of failures in the executions that succeed or fail now; a retry is neither. "
            "Red: sort the table below by failures, open the job type, look at its error types.",
            share(sum_by(_SCOPE.rate(f.JOBS, status=FAILURE)), sum_by(_SCOPE.rate(f.JOBS, status=DECIDED))),
            steps=[(0.01, ORANGE), (0.05, RED)],
            nothing="nothing ran",
        ),
        number(
            "Oldest waiting job",
            "s",
            "How long the job next to run has been waiting, in the queue with the longest wait. "
            "Red: check whether that queue has consumers and whether workers are saturated; then add workers or stop "
            "the sender.",
            max_by(age(min_by(oldest_queued, *f.QUEUE_LABELS))),
            steps=[(60, ORANGE), (600, RED)],
            nothing="none waits",
        ),
        number(
            "Saturation",
            "percentunit",
            "Running executions as a share of the workers' capacity, in the system with the highest share. "
            "Red with a growing queue: too few workers, or jobs that hang; see the longest running job.",
            max_by(busy),
            steps=[(0.8, ORANGE), (0.95, RED)],
            nothing="no workers",
        ),
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
            "Worker processes lost",
            COUNT,
            "Worker processes that died in a job in the last hour: killed, out of memory, crashed. "
            "Red: the kernel log shows whether memory ran out; the workers' dashboard shows the host.",
            sum_by(_SCOPE.increase(f.JOBS_WORKER_PROCESSES_LOST, "1h")),
            steps=[(1, RED)],
            nothing="none",
        ),
        number(
            "Longest running job",
            "s",
            "How long the execution that started first has been running. "
            "Red: if that is not normal for its type, it hangs; find its type below, then stop it in its job system.",
            max_by(age(min_by(_SCOPE.timestamp(f.JOBS_ACTIVE_OLDEST), *f.JOB_LABELS))),
            steps=[(3600, ORANGE), (21600, RED)],
            nothing="none runs",
        ),
        number(
            "Throughput",
            "ops",
            "Executions that end per second. Zero while jobs wait: workers are gone or stuck.",
            sum_by(_SCOPE.rate(f.JOBS)),
            nothing="nothing ran",
        ),
        number(
            "Jobs waiting",
            COUNT,
            "Jobs in all queues. The number alone is neither good nor bad: look at the age and at the trend below.",
            sum_by(_SCOPE.gauge(f.JOBS_QUEUE_DEPTH)),
            nothing="no queue read",
        ),
        number(
            "Retries",
            "percentunit",
            "Share of the executions ending now that ask for another attempt. "
            "Red: a service that jobs depend on is down or slow; the graph of retries shows the types.",
            share(sum_by(_SCOPE.rate(f.JOBS, status=RETRY)), sum_by(_SCOPE.rate(f.JOBS))),
            steps=[(0.1, ORANGE), (0.5, RED)],
            nothing="nothing ran",
        ),
        number(
            "Withdrawn jobs",
            COUNT,
            "Jobs of the last hour that never started: revoked, expired, rejected or of an unknown type. "
            "Orange: see the reasons on the job type's dashboard. unknown means that a worker does not have the code "
            "of a task.",
            sum_by(_SCOPE.increase(f.JOBS_WITHDRAWN, "1h")),
            steps=[(1, ORANGE)],
            nothing="none",
        ),
        number(
            "Schedule overdue",
            "s",
            "Delay of the most overdue schedule entry or cron job. Red: beat or the cron "
            "scheduler has stopped; see the schedule on the workers' dashboard.",
            max_by(max_by(beat_overdue, "system").or_else(max_by(cron_overdue, "system"))),
            steps=[(60, ORANGE), (300, RED)],
            nothing="no schedule",
        ),
        number(
            "Blind spots",
            COUNT,
            "Exporters that Prometheus cannot scrape, brokers and registry directories that an exporter cannot read. "
            "Red: figures here are missing, not zero; the exporter's dashboard shows which.",
            unscraped + unread + no_directory,
            steps=[(1, RED)],
            nothing="no exporter",
        ),
    ]


def _alerts() -> Panel:
    by = {
        "severity": "Severity",
        "alertname": "Alert",
        "job": "Application",
        "system": "System",
        "job_type": "Job type",
        "queue_name": "Queue",
        "instance": "Host",
    }
    return rows(
        "Alerts firing",
        "Firing alerts of the shipped rules, the longest on top. Each has a section in the runbook with its meaning "
        "and what to do. Also empty if Prometheus does not load the rules.",
        by,
        [Column("Active for", "s", age(max_by(_SCOPE.alerts(), *by)))],
        height=5,
        nothing="none fires",
    )


def _ends() -> list[Panel]:
    failures = sum_by(_SCOPE.rate(f.JOBS, status=FAILURE), "job_type")
    retries = sum_by(_SCOPE.rate(f.JOBS, status=RETRY), "job_type")
    return [
        graph(
            "Executions by status",
            "ops",
            "Executions that end per second, by status. A fall to zero while jobs wait: workers are gone "
            "or stuck. More red: see the panel of failures.",
            [Line(sum_by(_SCOPE.rate(f.JOBS), "status"), "{{status}}")],
            stacked=True,
            colours=STATUS_COLOURS,
            nothing="nothing ran",
        ),
        graph(
            "Failures by job type",
            "ops",
            f"Failed executions per second, of the {_LINES} types with most. One type: its code or its data; all "
            "types at once: something that they share, such as a database or a deployment. A click on a line opens its "
            "type.",
            [Line(top(_LINES, failures), "{{job_type}}")],
            links=[_LINE_TO_JOB_TYPE],
            nothing="nothing failed",
        ),
        graph(
            "Retries by job type",
            "ops",
            f"Executions per second that asked for another attempt, of the {_LINES} types with most. Many: "
            "a service that the jobs call is down, and every attempt adds load; stop the senders or raise the delay.",
            [Line(top(_LINES, retries), "{{job_type}}")],
            links=[_LINE_TO_JOB_TYPE],
            nothing="nothing retried",
        ),
    ]


def _times() -> list[Panel]:
    duration, wait = _SCOPE.rate_of_buckets(f.JOBS_DURATION), _SCOPE.rate_of_buckets(f.JOBS_QUEUE_WAIT)
    return [
        quantiles(
            "Duration",
            "Run time of executions, with any status, over all chosen types. It rises: choose a type on the job type's "
            "dashboard; stages and processor time separate waiting from work.",
            {level: quantile(level, duration) for level in QUANTILES},
            nothing="nothing ran",
        ),
        quantiles(
            "Wait in the queue",
            "Time from when a job could have run to its start. It rises: workers are saturated, gone, or busy with "
            "other queues; see saturation and the age of the oldest job. Only for jobs with a known time of "
            "publishing.",
            {level: quantile(level, wait) for level in QUANTILES},
            nothing="no wait known",
        ),
        graph(
            "Running, and capacity",
            "short",
            "Running executions, and the workers' capacity. The lines meet: saturated; add workers "
            "if a queue grows. Capacity falls: workers have stopped or died.",
            [
                Line(sum_by(_SCOPE.gauge(f.JOBS_ACTIVE), "system"), "{{system}} running"),
                Line(sum_by(_SCOPE.gauge(f.JOBS_WORKER_CAPACITY), "system"), "{{system}} capacity"),
            ],
            nothing="no workers",
        ),
    ]


def _piles() -> list[Panel]:
    depth = sum_by(_SCOPE.gauge(f.JOBS_QUEUE_DEPTH), "system", "queue_name")
    oldest = age(min_by(_SCOPE.timestamp(f.JOBS_QUEUE_OLDEST), "system", "queue_name"))
    running = age(min_by(_SCOPE.timestamp(f.JOBS_ACTIVE_OLDEST), "job_type"))
    return [
        graph(
            "Queue depth",
            "short",
            f"Jobs waiting, of the {_LINES} longest queues. It keeps growing: more jobs are sent than done; see the "
            "queue's consumers and drain time on the queues' dashboard.",
            [Line(top(_LINES, depth), "{{system}} {{queue_name}}")],
            links=[_LINE_TO_QUEUE],
            nothing="no queue read",
        ),
        graph(
            "Age of the oldest waiting job",
            "s",
            f"How long the job next to run has been waiting, of the {_LINES} queues with the longest wait. It grows by "
            "a second per second: no worker takes jobs from that queue. Not every broker reports it.",
            [Line(top(_LINES, oldest), "{{system}} {{queue_name}}")],
            links=[_LINE_TO_QUEUE],
            nothing="none waits",
        ),
        graph(
            "Age of the longest running job",
            "s",
            f"How long the oldest execution of a type has been running, of the {_LINES} longest. A line that climbs "
            "and never falls is a job that hangs: stop it in its job system, then give its type a time limit.",
            [Line(top(_LINES, running), "{{job_type}}")],
            links=[_LINE_TO_JOB_TYPE],
            nothing="none runs",
        ),
    ]


def _job_types() -> Panel:
    by = {"system": "System", "job_type": "Job type"}
    ended = sum_by(_SCOPE.increase(f.JOBS, TIME_RANGE), *by)
    failed = sum_by(_SCOPE.increase(f.JOBS, TIME_RANGE, status=FAILURE), *by)
    decided = sum_by(_SCOPE.increase(f.JOBS, TIME_RANGE, status=DECIDED), *by)
    duration = quantile(0.95, _SCOPE.increase_of_buckets(f.JOBS_DURATION, TIME_RANGE), *by)
    wait = quantile(0.95, _SCOPE.increase_of_buckets(f.JOBS_QUEUE_WAIT, TIME_RANGE), *by)
    return rows(
        "Job types by failures",
        "Each type in the time range of the dashboard, the one with most failures on top; a click on its name "
        "opens its details. A last success long ago in a type that should run often: it fails every time, or "
        "is not sent.",
        by,
        [
            Column("Failures", COUNT, failed.or_else(ended * 0), [(1, ORANGE)]),
            Column("Failed", "percentunit", share(failed, decided), [(0.01, ORANGE), (0.05, RED)]),
            Column("Executions", COUNT, ended),
            Column("Retries", COUNT, sum_by(_SCOPE.increase(f.JOBS_RETRIES, TIME_RANGE), *by)),
            Column("Duration p95", "s", duration),
            Column("Wait p95", "s", wait),
            Column("Running", COUNT, sum_by(_SCOPE.gauge(f.JOBS_ACTIVE), *by)),
            Column("Last success", "s", age(max_by(_SCOPE.timestamp(f.JOBS_LAST_SUCCESS), *by))),
        ],
        links={"job_type": _TO_JOB_TYPE},
        nothing="nothing ran",
    )
