"""Whether the figures on the other dashboards can be trusted."""

from __future__ import annotations

from dashboards import assembly, variables
from dashboards.assembly import Row, Spec
from dashboards.panels import COUNT, ORANGE, RED, Column, Line, Panel, graph, number, rows, states
from dashboards.promql import (
    APPLICATION_LABEL,
    HOST_LABEL,
    SCRAPE_LABELS,
    TIME_RANGE,
    age,
    count_by,
    max_by,
    min_by,
    share,
    sum_by,
    top,
)
from jobmetrics import families as f

VARIABLES = (
    variables.APPLICATION,
    variables.HOST,
    variables.BROKER,
)
_SCOPE = assembly.scope(VARIABLES)
_HOST_LEGEND = f"{{{{{HOST_LABEL}}}}}"
_LARGEST = 20  # rows of the table of metrics
_COLLECTOR = (HOST_LABEL, "collector", "broker")
_COLLECTOR_LEGEND = f"{_HOST_LEGEND} {{{{collector}}}} {{{{broker}}}}"


def spec() -> Spec:
    """The dashboard."""
    return Spec(
        assembly.EXPORTER,
        "Exporter health",
        "Whether the figures on the other dashboards can be trusted: exporters, registry directories, readings of "
        "brokers, and what was not recorded.",
        VARIABLES,
        [
            Row("Now", _signals()),
            Row("Up and down", _up()),
            Row("Not recorded", _losses()),
            Row("Registry directory", _directory()),
        ],
    )


def _signals() -> list[Panel]:
    return [
        number(
            "Exporters down",
            COUNT,
            "Exporters of the last day that Prometheus cannot scrape. Red: figures of their hosts are missing; start "
            "them, or check whether Prometheus can reach them.",
            sum_by(_SCOPE.scraped(f.BUILD_INFO, "1d").equals(0)),
            steps=[(1, RED)],
            nothing="no exporter",
        ),
        number(
            "Directories unreadable",
            COUNT,
            "Exporters that cannot read the registry directory. Red: `jobmetrics check` on the host shows the reason: "
            "missing, wrong owner or group, or workers and exporter use different ones.",
            sum_by(_SCOPE.gauge(f.DIRECTORY_UP).equals(0)),
            steps=[(1, RED)],
            nothing="no exporter",
        ),
        number(
            "Brokers unread",
            COUNT,
            "Failed readings of brokers. Red: the exporter's log has the error; queue figures are absent, not zero.",
            sum_by(_SCOPE.gauge(f.COLLECTOR_UP).equals(0)),
            steps=[(1, RED)],
            nothing="no collectors",
        ),
        number(
            "Series, of the limit",
            "percentunit",
            "Series in the directory as a share of max_series, on the host with the highest share. Red: new job types "
            "and error types will count under __other__; look for names with ids in them, or raise max_series.",
            max_by(share(_SCOPE.gauge(f.SERIES), _SCOPE.gauge(f.SERIES_LIMIT))),
            steps=[(0.8, ORANGE), (0.95, RED)],
            nothing="no directory",
        ),
        number(
            "Updates dropped",
            COUNT,
            "Updates in the time range that were not recorded. Red: counts are too low; see the reasons below.",
            sum_by(_SCOPE.increase(f.DROPPED_UPDATES, TIME_RANGE)),
            steps=[(1, RED)],
            nothing="none",
        ),
        number(
            "Internal errors",
            COUNT,
            "Errors of jobmetrics in the time range; jobs are not affected. Red: the workers' logs have them, "
            "at most once a minute; please report them.",
            sum_by(_SCOPE.increase(f.INTERNAL_ERRORS, TIME_RANGE)),
            steps=[(1, RED)],
            nothing="none",
        ),
    ]


def _up() -> list[Panel]:
    last = max_by(_SCOPE.timestamp(f.COLLECTOR_LAST_SUCCESS), *_COLLECTOR)
    return [
        states(
            "Exporters",
            "Whether Prometheus could scrape each exporter. Red: it has stopped, or cannot be reached.",
            [Line(max_by(_SCOPE.scraped(f.BUILD_INFO, "1d"), HOST_LABEL), _HOST_LEGEND)],
            width=8,
            nothing="no exporter",
        ),
        states(
            "Registry directories",
            "Whether each exporter could read its directory. Red: see `jobmetrics check` on that host.",
            [Line(min_by(_SCOPE.gauge(f.DIRECTORY_UP), HOST_LABEL), _HOST_LEGEND)],
            width=8,
            nothing="no exporter",
        ),
        states(
            "Readings of brokers",
            "Whether each collector's last reading succeeded. Red: the broker is down, refuses the password, or is "
            "too slow for the timeout.",
            [Line(min_by(_SCOPE.gauge(f.COLLECTOR_UP), *_COLLECTOR), _COLLECTOR_LEGEND)],
            width=8,
            nothing="no collectors",
        ),
        graph(
            "Age of the last good reading",
            "s",
            "Time since a collector last succeeded. More than a few seconds: it fails or hangs.",
            [Line(age(last), _COLLECTOR_LEGEND)],
            nothing="no collectors",
        ),
        graph(
            "Time a reading takes",
            "s",
            "Duration of the last reading of a broker. Close to the timeout: the broker is slow, or has very many "
            "queues; name the ones to read.",
            [Line(max_by(_SCOPE.gauge(f.COLLECTOR_DURATION), *_COLLECTOR), _COLLECTOR_LEGEND)],
            nothing="no collectors",
        ),
        graph(
            "Time a scrape takes",
            "s",
            "Time in which the exporter reads its directory. It rises with processes and series. Close to Prometheus' "
            "scrape timeout: scrape less often or record fewer series.",
            [Line(max_by(_SCOPE.gauge(f.SCRAPE_DURATION), HOST_LABEL), _HOST_LEGEND)],
            nothing="no exporter",
        ),
    ]


def _losses() -> list[Panel]:
    return [
        graph(
            "Updates dropped, by reason",
            "cps",
            "Updates per second that were not recorded. disk full: free space in the registry directory. negative, not "
            "finite or too large: fix the application's metric, which the label metric names.",
            [Line(sum_by(_SCOPE.rate(f.DROPPED_UPDATES), HOST_LABEL, "reason"), f"{_HOST_LEGEND} {{{{reason}}}}")],
            nothing="none",
        ),
        graph(
            "Series dropped",
            "cps",
            "Series per second beyond the limit, which count under __other__. Totals stay exact; names are "
            "lost. Look for labels with ever new values.",
            [Line(sum_by(_SCOPE.rate(f.DROPPED_SERIES), HOST_LABEL), _HOST_LEGEND)],
            nothing="none",
        ),
        graph(
            "Internal errors, by place",
            "cps",
            "Errors of jobmetrics per second; jobs are not affected. See the workers' logs, and report them.",
            [Line(sum_by(_SCOPE.rate(f.INTERNAL_ERRORS), HOST_LABEL, "where"), f"{_HOST_LEGEND} {{{{where}}}}")],
            nothing="none",
        ),
    ]


def _directory() -> list[Panel]:
    return [
        graph(
            "Slots by state",
            "short",
            "live: held by processes; free: for the next ones; damaged: set aside. live climbs and never falls: "
            "processes that should have ended have not. damaged: another program wrote there, or the disk fails.",
            [Line(sum_by(_SCOPE.gauge(f.SLOTS), HOST_LABEL, "state"), f"{_HOST_LEGEND} {{{{state}}}}")],
            nothing="no directory",
        ),
        graph(
            "Series, and their limit",
            "short",
            "Series in the directory, and the limit. They climb without end: a label has ever new values.",
            [
                Line(max_by(_SCOPE.gauge(f.SERIES), HOST_LABEL), f"{_HOST_LEGEND} series"),
                Line(max_by(_SCOPE.gauge(f.SERIES_LIMIT), HOST_LABEL), f"{_HOST_LEGEND} limit"),
            ],
            nothing="no directory",
        ),
        graph(
            "Series and metrics left out",
            "short",
            "Series of families that were declared again, which are not shown: some are normal after a deployment that "
            "changed buckets or labels, and `jobmetrics prune` clears them after the workers have stopped. Invalid "
            "metrics: the exporter's log names them. Timestamps in the future: the host's clock was set back.",
            [
                Line(max_by(_SCOPE.gauge(f.SUPERSEDED_SERIES), HOST_LABEL), _HOST_LEGEND),
                Line(max_by(_SCOPE.gauge(f.INVALID_FAMILIES), HOST_LABEL), f"{_HOST_LEGEND} invalid metrics"),
                Line(max_by(_SCOPE.gauge(f.FUTURE_TIMESTAMPS), HOST_LABEL), f"{_HOST_LEGEND} future timestamps"),
            ],
            nothing="no directory",
        ),
        rows(
            "Metrics with most series",
            "The metrics that use most of the limit, on each host. Far above the others: a label has ever new values, "
            "such as an id.",
            {APPLICATION_LABEL: "Application", HOST_LABEL: "Host", "metric": "Metric"},
            [
                Column(
                    "Series", COUNT, top(_LARGEST, max_by(_SCOPE.gauge(f.SERIES_BY_METRIC), *SCRAPE_LABELS, "metric"))
                )
            ],
            width=24,
            height=8,
            nothing="no directory",
        ),
        rows(
            "Versions",
            "Exporters by version. Several versions for a long time: a deployment has not finished.",
            {APPLICATION_LABEL: "Application", "version": "Version"},
            [Column("Exporters", COUNT, count_by(_SCOPE.gauge(f.BUILD_INFO), APPLICATION_LABEL, "version"))],
            width=8,
            height=8,
            nothing="no exporter",
        ),
        rows(
            "Exporters by slots",
            "Each exporter with the processes that record on its host, the most on top. None: its workers record "
            "into another directory, or do not record.",
            {APPLICATION_LABEL: "Application", HOST_LABEL: "Host"},
            [
                Column("Live slots", COUNT, sum_by(_SCOPE.gauge(f.SLOTS, state="live"), *SCRAPE_LABELS)),
                Column("Series", COUNT, sum_by(_SCOPE.gauge(f.SERIES), *SCRAPE_LABELS)),
                Column("Workers", COUNT, sum_by(_SCOPE.gauge(f.JOBS_WORKERS), *SCRAPE_LABELS)),
            ],
            width=16,
            height=8,
            nothing="no exporter",
        ),
    ]
