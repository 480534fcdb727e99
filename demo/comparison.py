"""Compare what was sent and what the jobs wrote with what /metrics shows, line by line and as a table."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from prometheus_client.metrics_core import Metric
from rich.console import Console
from rich.table import Table
from rich.text import Text

from demo.ledger import FAILURE, KILLED, RETRY, SUCCESS, Entry, Sent
from jobmetrics import families
from jobmetrics.cli.top import duration
from jobmetrics.exporter.overview import quantile

JobType = tuple[str, str]
"""(system, job type)."""

SENT, LEDGER, COUNTED, EXPECTED = "sent", "ledger", "counted", "expected"


class Samples:
    """The samples of one scrape, by name."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._samples: dict[str, list[tuple[Mapping[str, str], float]]] = defaultdict(list)
        for metric in metrics:
            for sample in metric.samples:
                self._samples[sample.name].append((sample.labels, sample.value))

    def find(self, name: str, **labels: str) -> list[tuple[Mapping[str, str], float]]:
        """The samples with these labels; an empty list if there is none."""
        return [(found, value) for found, value in self._samples[name] if labels.items() <= found.items()]

    def total(self, name: str, **labels: str) -> float:
        """The sum of the samples with these labels; 0 if there is none."""
        return sum(value for _, value in self.find(name, **labels))

    def by(self, label: str, name: str, **labels: str) -> dict[str, float]:
        """The sums of the samples with these labels, by the value of another label."""
        sums: dict[str, float] = defaultdict(float)
        for found, value in self.find(name, **labels):
            sums[found.get(label, "")] += value
        return dict(sums)

    def quantile(self, share: float, name: str, **labels: str) -> float | None:
        """A quantile over all of a histogram's series with these labels."""
        return quantile(
            {float(bound): count for bound, count in self.by("le", f"{name}_bucket", **labels).items()}, share
        )

    def job_types(self) -> set[JobType]:
        """The job types that were counted as run or as published."""
        names = (families.JOBS.name, families.JOBS_PUBLISHED.name)
        return {(found["system"], found["job_type"]) for name in names for found, _ in self.find(name)}


class Account:
    """Sent jobs and ledger lines, counted."""

    def __init__(self, sent: Collection[Sent], entries: Collection[Entry]) -> None:
        self.sent: Counter[JobType] = Counter((job.system, job.job_type) for job in set(sent))
        self.executions: Counter[JobType] = Counter((entry.system, entry.job_type) for entry in entries)
        finals = Counter((entry.system, entry.job_type, entry.id) for entry in entries if entry.final)
        self.over: Counter[JobType] = Counter((system, job_type) for system, job_type, _ in finals)
        self.repeated = sum(count - 1 for count in finals.values())
        self.killed = Counter(entry.system for entry in entries if entry.error_type in KILLED.values())
        self.outcomes: dict[JobType, Counter[str]] = defaultdict(Counter)
        self.errors: dict[JobType, Counter[str]] = defaultdict(Counter)
        for entry in entries:
            self.outcomes[entry.system, entry.job_type][entry.outcome] += 1
            if entry.outcome == FAILURE:
                self.errors[entry.system, entry.job_type][entry.error_type] += 1


@dataclass(frozen=True)
class Comparison:
    """Numbers that must be equal, each with its source."""

    about: str
    sides: tuple[tuple[str, float], ...]

    @property
    def agrees(self) -> bool:
        """Whether all numbers are equal."""
        return len({value for _, value in self.sides}) == 1

    def __str__(self) -> str:
        sign = " = " if self.agrees else " != "
        shown = ((source, "nothing" if math.isnan(value) else f"{value:.12g}") for source, value in self.sides)
        return f"{self.about}: {sign.join(f'{source} {value}' for source, value in shown)}"


def compare(account: Account, samples: Samples, queues: Mapping[str, str], *, with_depth: bool) -> list[Comparison]:
    """Make every comparison, in the order to print them.

    Args:
        account: what was sent and what ran.
        samples: one scrape. A job type that only it knows is a difference.
        queues: the queue of each system.
        with_depth: whether the exporter reads the queues.
    """
    kinds = sorted(set(account.sent) | set(account.executions) | samples.job_types())
    found = [comparison for kind in kinds for comparison in _of_job_type(kind, account, samples)]
    for system, queue in sorted(queues.items()):
        found += _of_system(system, queue, account, samples)
        if with_depth:
            depths = samples.find(families.JOBS_QUEUE_DEPTH.name, system=system, queue_name=queue)
            depth = sum(value for _, value in depths) if depths else math.nan  # an absent reading is not an empty queue
            found.append(Comparison(f"{system} waiting in queue {queue}", ((EXPECTED, 0), (COUNTED, depth))))
    return found + _of_all(account, samples)


def _of_job_type(kind: JobType, account: Account, samples: Samples) -> list[Comparison]:
    system, job_type = kind
    labels = {"system": system, "job_type": job_type}

    def line(about: str, *sides: tuple[str, float]) -> Comparison:
        return Comparison(f"{system} {job_type} {about}", sides)

    def counted(family: families.Family, suffix: str = "") -> float:
        return samples.total(family.name + suffix, **labels)

    statuses = samples.by("status", families.JOBS.name, **labels)
    over = sum(value for status, value in statuses.items() if status != RETRY)
    sent, executions, outcomes = account.sent[kind], account.executions[kind], account.outcomes[kind]
    found = [line("jobs", (SENT, sent), (LEDGER, account.over[kind]), (COUNTED, over))]
    found += _by_value(lambda status: f"{system} {job_type} {status}", outcomes, statuses)
    found.append(line("retries", (LEDGER, outcomes[RETRY]), (COUNTED, counted(families.JOBS_RETRIES))))
    failures = samples.by("error_type", families.JOBS_FAILURES.name, **labels)
    found += _by_value(lambda error: f"{system} {job_type} failures {error}", account.errors[kind], failures)
    durations = counted(families.JOBS_DURATION, "_count") + counted(families.JOBS_DURATION_UNKNOWN)
    found.append(line("durations", (LEDGER, executions), (COUNTED, durations)))
    found.append(line("waits", (LEDGER, executions), (COUNTED, counted(families.JOBS_QUEUE_WAIT, "_count"))))
    if samples.find(families.JOBS_PUBLISHED.name, system=system):  # absent if its producer is not instrumented
        found.append(line("published", (SENT, sent), (COUNTED, counted(families.JOBS_PUBLISHED))))
    return found


def _by_value(
    about: Callable[[str], str], ledger: Mapping[str, float], counted: Mapping[str, float]
) -> list[Comparison]:
    return [
        Comparison(about(value), ((LEDGER, ledger.get(value, 0)), (COUNTED, counted.get(value, 0.0))))
        for value in sorted(set(ledger) | set(counted))
    ]


def _of_system(system: str, queue: str, account: Account, samples: Samples) -> list[Comparison]:
    executions = sum(count for kind, count in account.executions.items() if kind[0] == system)
    counted = samples.total(families.JOBS.name, system=system, queue_name=queue)
    lost = samples.total(families.JOBS_WORKER_PROCESSES_LOST.name, system=system)
    return [
        Comparison(f"{system} executions of queue {queue}", ((LEDGER, executions), (COUNTED, counted))),
        Comparison(f"{system} processes killed", ((LEDGER, account.killed[system]), (COUNTED, lost))),
    ]


def _of_all(account: Account, samples: Samples) -> list[Comparison]:
    jobs = samples.total(families.JOBS.name)
    durations = samples.total(f"{families.JOBS_DURATION.name}_count")
    unknown = samples.total(families.JOBS_DURATION_UNKNOWN.name)
    active = sum(abs(value) for _, value in samples.find(families.JOBS_ACTIVE.name))
    return [
        Comparison("all jobs over more than once in the ledger", ((EXPECTED, 0), (LEDGER, account.repeated))),
        Comparison("all executions", ((LEDGER, account.executions.total()), (COUNTED, jobs))),
        Comparison("all durations", (("jobs_total", jobs), ("durations known and unknown", durations + unknown))),
        Comparison("all running now", ((EXPECTED, 0), (COUNTED, active))),
    ]


def console(*, stderr: bool = False) -> Console:
    """Where the demo prints; lines are left as long as they are."""
    return Console(stderr=stderr, highlight=False, soft_wrap=True)


def say(out: Console, text: str, style: str = "") -> None:
    """Print text as it is: a '[' in a log or a job type is not markup."""
    out.print(Text(text, style=style))


def table(account: Account, samples: Samples) -> Table:
    """What /metrics shows for each job type, in 80 columns. Names stand below their system, without their module."""
    found = Table(title="What /metrics shows:", title_justify="left", box=None, pad_edge=False, padding=(0, 1, 0, 0))
    found.add_column("job type", no_wrap=True)
    for heading in ("sent", "succeeded", "failed", "retried", "p50", "p95", "p95 wait"):
        found.add_column(heading, justify="right", max_width=9)
    above = ""
    for system, job_type in sorted(set(account.sent) | samples.job_types()):
        if system != above:
            found.add_row(Text(system, style="bold"))
            above = system
        labels = {"system": system, "job_type": job_type}
        statuses = samples.by("status", families.JOBS.name, **labels)
        counts = (account.sent[system, job_type], *(statuses.get(status, 0) for status in (SUCCESS, FAILURE, RETRY)))
        seconds = (
            samples.quantile(share, family.name, **labels)
            for share, family in (
                (0.5, families.JOBS_DURATION),
                (0.95, families.JOBS_DURATION),
                (0.95, families.JOBS_QUEUE_WAIT),
            )
        )
        cells = (*(f"{count:.12g}" for count in counts), *map(duration, seconds))
        found.add_row(Text(f"  {job_type.rpartition('.')[2]}"), *cells)
    return found


def verdict(out: Console, comparisons: Sequence[Comparison], executions: int) -> bool:
    """Print every comparison and the result; True if all agree and at least one job ran."""
    say(out, "What was sent, what the jobs wrote down themselves, and what /metrics counted:")
    different = [comparison for comparison in comparisons if not comparison.agrees]
    for comparison in comparisons:
        say(
            out,
            f"  {comparison}" if comparison.agrees else f"  DIFFERENT {comparison}",
            "" if comparison.agrees else "red",
        )
    if executions == 0:
        say(out, "No job ran, so there is nothing to compare.", "bold red")
        return False
    if different:
        say(out, f"{len(different)} of {len(comparisons)} comparisons differ:", "bold red")
        for comparison in different:
            say(out, f"  {comparison}", "red")
        return False
    agreed = f"sent = ledger = counted: {executions} executions, {len(comparisons)} comparisons."
    say(out, agreed, "bold green")
    return True
