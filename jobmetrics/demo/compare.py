"""What was sent and what the jobs wrote down against what /metrics says."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from jobmetrics import families
from jobmetrics.demo import ledger
from jobmetrics.demo.scrape import Exposition

JobType = tuple[str, str]
"""(system, job type)."""

SENT, LEDGER, COUNTED, EXPECTED = "sent", "ledger", "counted", "expected"


@dataclass(frozen=True)
class Comparison:
    """Numbers that must be equal, each with who says it."""

    about: str
    sides: tuple[tuple[str, float], ...]

    @property
    def agrees(self) -> bool:
        """Whether all sides say the same."""
        return len({value for _, value in self.sides}) == 1

    def __str__(self) -> str:
        sign = " = " if self.agrees else " != "
        return f"{self.about}: " + sign.join(f"{who} {_shown(value)}" for who, value in self.sides)


def _shown(value: float) -> str:
    return "nothing" if math.isnan(value) else f"{value:.12g}"


class Account:
    """Sent jobs and ledger lines, counted."""

    def __init__(self, sent: Collection[ledger.Sent], entries: Collection[ledger.Entry]) -> None:
        self.executions: Counter[JobType] = Counter((entry.system, entry.job_type) for entry in entries)
        self.sent: Counter[JobType] = Counter((job.system, job.job_type) for job in set(sent))
        finals = Counter((entry.system, entry.job_type, entry.id) for entry in entries if entry.final)
        self.over: Counter[JobType] = Counter((system, job_type) for system, job_type, _ in finals)
        self.repeated = sum(count - 1 for count in finals.values())
        self.outcomes: Counter[tuple[str, str, str]] = Counter(
            (entry.system, entry.job_type, entry.outcome) for entry in entries
        )
        self.errors: Counter[tuple[str, str, str]] = Counter(
            (entry.system, entry.job_type, entry.error_type) for entry in entries if entry.outcome == ledger.FAILURE
        )


def compare(
    account: Account, exposition: Exposition, queues: Mapping[str, str], *, with_depth: bool
) -> list[Comparison]:
    """Every comparison there is to make, in the order to print them.

    `queues` gives the queue of each system; `with_depth` says whether the exporter reads their depth.
    """
    kinds = set(account.sent) | set(account.executions)
    # Also what only /metrics knows: a job type that nobody sent is a difference.
    for metric in (families.JOBS, families.JOBS_PUBLISHED):
        kinds |= {(sample.labels["system"], sample.labels["job_type"]) for sample in exposition.samples(metric.name)}
    found = [comparison for kind in sorted(kinds) for comparison in _of_job_type(kind, account, exposition)]
    found += _of_queues(account, exposition, queues, with_depth=with_depth)
    found += _over_all(account, exposition)
    return found


def _of_job_type(kind: JobType, account: Account, exposition: Exposition) -> list[Comparison]:
    system, job_type = kind
    labels = {"system": system, "job_type": job_type}
    name = f"{system} {job_type}"

    def counted(metric: families.Family, suffix: str = "", **more: str) -> float:
        return exposition.total(metric.name + suffix, {**labels, **more})

    statuses = exposition.by(families.JOBS.name, "status", labels)
    over = sum(value for status, value in statuses.items() if status != ledger.RETRY)
    found = [Comparison(f"{name} jobs", ((SENT, account.sent[kind]), (LEDGER, account.over[kind]), (COUNTED, over)))]
    outcomes = {outcome for *key, outcome in account.outcomes if tuple(key) == kind}
    found += [
        Comparison(
            f"{name} {status}",
            ((LEDGER, account.outcomes[system, job_type, status]), (COUNTED, statuses.get(status, 0.0))),
        )
        for status in sorted(outcomes | set(statuses))
    ]
    retries = account.outcomes[system, job_type, ledger.RETRY]
    found.append(Comparison(f"{name} retries", ((LEDGER, retries), (COUNTED, counted(families.JOBS_RETRIES)))))
    failures = exposition.by(families.JOBS_FAILURES.name, "error_type", labels)
    errors = {error for *key, error in account.errors if tuple(key) == kind}
    found += [
        Comparison(
            f"{name} failures {error}",
            ((LEDGER, account.errors[system, job_type, error]), (COUNTED, failures.get(error, 0.0))),
        )
        for error in sorted(errors | set(failures))
    ]
    executions = account.executions[kind]
    durations = counted(families.JOBS_DURATION, "_count") + counted(families.JOBS_DURATION_UNKNOWN)
    waits = counted(families.JOBS_QUEUE_WAIT, "_count")
    found.append(Comparison(f"{name} durations", ((LEDGER, executions), (COUNTED, durations))))
    found.append(Comparison(f"{name} waits", ((LEDGER, executions), (COUNTED, waits))))
    # Only a system whose producer is instrumented has this one at all.
    if exposition.samples(families.JOBS_PUBLISHED.name, {"system": system}):
        published = counted(families.JOBS_PUBLISHED)
        found.append(Comparison(f"{name} published", ((SENT, account.sent[kind]), (COUNTED, published))))
    return found


def _of_queues(
    account: Account, exposition: Exposition, queues: Mapping[str, str], *, with_depth: bool
) -> list[Comparison]:
    found = []
    for system, queue in sorted(queues.items()):
        labels = {"system": system, "queue_name": queue}
        executions = sum(count for kind, count in account.executions.items() if kind[0] == system)
        counted = exposition.total(families.JOBS.name, labels)
        found.append(Comparison(f"{system} executions of queue {queue}", ((LEDGER, executions), (COUNTED, counted))))
        if with_depth:
            depths = exposition.samples(families.JOBS_QUEUE_DEPTH.name, labels)
            # An absent reading is not an empty queue.
            depth = sum(sample.value for sample in depths) if depths else float("nan")
            found.append(Comparison(f"{system} waiting in queue {queue}", ((EXPECTED, 0), (COUNTED, depth))))
    return found


def _over_all(account: Account, exposition: Exposition) -> list[Comparison]:
    jobs = exposition.total(families.JOBS.name)
    durations = exposition.total(f"{families.JOBS_DURATION.name}_count")
    unknown = exposition.total(families.JOBS_DURATION_UNKNOWN.name)
    active = sum(abs(sample.value) for sample in exposition.samples(families.JOBS_ACTIVE.name))
    return [
        Comparison("all jobs over more than once in the ledger", ((EXPECTED, 0), (LEDGER, account.repeated))),
        Comparison("all executions", ((LEDGER, account.executions.total()), (COUNTED, jobs))),
        Comparison("all durations", (("jobs_total", jobs), ("durations known and unknown", durations + unknown))),
        Comparison("all running now", ((EXPECTED, 0), (COUNTED, active))),
    ]
