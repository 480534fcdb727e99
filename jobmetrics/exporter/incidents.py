"""Findings about jobs, queues, workers and schedules, as far as the metrics of one host show them.

`jobmetrics check` and `jobmetrics top` share them. Thresholds are those of rules/jobmetrics.alerts.yml, which sees all
hosts and the past. Here one reading is known, or two: counts are then for the time between them, otherwise for all that
was recorded, and each text states which.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Mapping

from jobmetrics.events import ATTEMPTS
from jobmetrics.exporter.overview import DIRECTORY, JobTypeCounts, Overview, QueueState, quantile
from jobmetrics.families import OVERFLOW
from jobmetrics.findings import NOTE, PROBLEM, STARTING, Finding

QUEUE_OLD = 600.0  # seconds
STUCK, STUCK_UNKNOWN = 600.0, 3600.0  # seconds, for job types with a known and an unknown usual run time
STUCK_FACTOR = 3.0  # of the usual 99th percentile
KNOWN = 30  # ended executions after which the usual run time of a job type is known
FAILURE_RATIO, FAILURES = 0.10, 3  # share of the executions, and count
RETRY_RATIO, RETRIES, RETRY_SECONDS = 0.5, 20, 900.0  # share of the executions, and count in this time
MOST_TRIED = ATTEMPTS[-1]
SCHEDULE_LATE = 300.0  # seconds
SCHEDULE_REMOVED = 86400.0  # seconds
CRON_LATE = 300.0  # seconds
RESTARTS = 3  # in 15 minutes at most; JobWorkersRestarting sees 30 minutes, and takes 5

_LONGEST_NAME = 80  # characters

_NOTHING = JobTypeCounts()


class Past:
    """Keeps a reading of each minute of the last 15, so that a live view can judge counts. `before` is the oldest."""

    STEP, SPAN = 60.0, 900.0  # seconds

    def __init__(self) -> None:
        self._readings: list[Overview] = []

    @property
    def before(self) -> Overview | None:
        """The oldest reading that is kept."""
        return self._readings[0] if self._readings else None

    def add(self, reading: Overview) -> None:
        """Keep the reading if the newest one is a minute older, and drop those that are too old."""
        if not self._readings or reading.at - self._readings[-1].at >= self.STEP:
            self._readings.append(reading)
        while len(self._readings) > 1 and reading.at - self._readings[1].at >= self.SPAN:
            del self._readings[0]


def find(
    now: Overview,
    before: Overview | None = None,
    *,
    starting: Mapping[str, float] | None = None,
    clock: float | None = None,
) -> Iterator[Finding]:
    """Report what is wrong, the most urgent first.

    Args:
        now: The newest reading.
        before: An earlier reading: failures, retries and losses are judged by what happened since. Without one, and for
            job types of which no execution has ended since, they are judged by all that was recorded, which cannot show
            whether the trouble lasts.
        starting: Job systems with a process that has just started, and the seconds since.
        clock: The present in epoch seconds; the system's clock if None.
    """
    present = time.time() if clock is None else clock
    jobs = _by_job_type(now)
    earlier = None if before is None else _by_job_type(before)
    seconds = 0.0 if before is None else now.at - before.at
    yield from _workers(now, starting or {})
    yield from _queues(now, present)
    yield from _stuck(now, jobs, present)
    for (system, job_type), counts in sorted(jobs.items()):
        if job_type == OVERFLOW:
            continue
        name = f"{_short(job_type)} ({system})"
        change = _change(counts, (earlier or {}).get((system, job_type), _NOTHING))
        if earlier is None or not change.ended:
            yield from _recorded(name, counts, present)
        else:
            yield from _lately(name, change, counts, seconds)
        if counts.unresolved:
            yield Finding(
                NOTE, f"no end is recorded of {_count(counts.unresolved, 'execution')} of {name} within the last day: "
                "the process was killed",
                "check whether their jobs were delivered again", "JobWorkersRestarting", counts.unresolved,
            )  # fmt: skip
    yield from _losses(now, before, seconds)
    yield from _schedules(now, present)


def down(now: Overview, *, directory: bool = True) -> Iterator[Finding]:
    """Report what the exporter that serves the metrics cannot read.

    Args:
        now: The newest reading.
        directory: Whether to report the registry directory too.
    """
    for what in now.down:
        if what != DIRECTORY:
            yield Finding(PROBLEM, f"the exporter cannot read {_short(what)}", "see its log", "JobmetricsCollectorDown")
        elif directory:
            yield Finding(PROBLEM, f"the exporter cannot read {what}", "see its log", "JobmetricsDirectoryDown")


def _short(name: str) -> str:
    """Shorten a name, of which any producer may choose the length. Both of its ends are kept."""
    if len(name) <= _LONGEST_NAME:
        return name
    half = _LONGEST_NAME // 2
    return f"{name[: half - 2]}...{name[-half + 1 :]}"


def _count(count: float, noun: str) -> str:
    plural = "es" if noun.endswith("s") else "s"
    return f"{count:.0f} {noun}" + ("" if round(count) == 1 else plural)


def span(seconds: float) -> str:
    """Format a time in words."""
    for limit, divisor, unit in ((120, 1, "second"), (7200, 60, "minute"), (172_800, 3600, "hour")):
        if seconds < limit:
            return _count(seconds / divisor, unit)
    return _count(seconds / 86400, "day")


def _by_job_type(overview: Overview) -> dict[tuple[str, str], JobTypeCounts]:
    """Sum the counts over queues."""
    found: dict[tuple[str, str], JobTypeCounts] = defaultdict(JobTypeCounts)
    for (system, job_type, _), counts in overview.jobs.items():
        total = found[system, job_type]
        for name in ("ended", "succeeded", "failed", "retried", "active", "unresolved"):
            setattr(total, name, getattr(total, name) + getattr(counts, name))
        total.oldest = min(filter(None, (total.oldest, counts.oldest)), default=None)
        total.last_success = max(filter(None, (total.last_success, counts.last_success)), default=None)
        for attempt, value in counts.attempts.items():
            total.attempts[attempt] = total.attempts.get(attempt, 0.0) + value
        for bound, value in counts.durations.items():
            total.durations[bound] = total.durations.get(bound, 0.0) + value
    return found


def _change(now: JobTypeCounts, before: JobTypeCounts) -> JobTypeCounts:
    """Return what was counted between two readings. All of it if the directory was pruned between them."""
    if before.ended > now.ended:
        before = _NOTHING
    return JobTypeCounts(
        ended=now.ended - before.ended,
        succeeded=now.succeeded - before.succeeded,
        failed=now.failed - before.failed,
        retried=now.retried - before.retried,
        attempts={attempt: count - before.attempts.get(attempt, 0.0) for attempt, count in now.attempts.items()},
    )


def _workers(now: Overview, starting: Mapping[str, float]) -> Iterator[Finding]:
    """Report job systems without a living worker on this host, and workers that are all busy while jobs wait."""
    waiting: dict[str, float] = defaultdict(float)
    for (system, _, _), queue in now.queues.items():
        waiting[system] += queue.depth or 0.0
    for system, count in sorted(now.workers.items()):
        jobs = f", and {_wait(waiting[system])}" if waiting[system] else ""
        capacity, active = now.capacity.get(system, 0.0), _active(now, system)
        if not count and system in starting:
            yield Finding(
                STARTING, f"a {system} process started {span(starting[system])} ago and does not record yet{jobs}",
                "run this again in a minute",
            )  # fmt: skip
        elif not count:
            yield Finding(
                PROBLEM, f"no {system} worker is alive on this host{jobs}",
                "start the workers; their logs have the reason of their end", "JobWorkersGone", waiting[system],
            )  # fmt: skip
        elif capacity and active >= capacity and waiting[system]:
            yield Finding(
                NOTE, f"{capacity:.0f} of {capacity:.0f} slots of the {system} workers on this host run a job{jobs}",
                "add workers if this lasts", "JobWorkersSaturated", waiting[system],
            )  # fmt: skip


def _wait(count: float) -> str:
    return f"{_count(count, 'job')} " + ("waits" if round(count) == 1 else "wait")


def _active(now: Overview, system: str) -> float:
    return sum(counts.active for (its, _, _), counts in now.jobs.items() if its == system)


def _queues(now: Overview, present: float) -> Iterator[Finding]:
    """Report queues that no worker consumes, old jobs, and scheduled jobs that are not queued."""
    touched, sent = _touched(now)
    for (system, broker, queue_name), queue in sorted(now.queues.items()):
        name = f"{_short(queue_name)} ({system}, broker {_short(broker)})"
        here = now.workers.get(system, 0.0) > 0 and (system, queue_name) not in touched
        yield from _queue(name, queue, present, never_ran_here=here)
    read = {(system, queue_name) for system, _, queue_name in now.queues}
    for (system, queue_name), count in sorted(sent.items()):
        place = (system, queue_name)
        if place not in read | touched and now.workers.get(system) and OVERFLOW not in place:
            yield Finding(
                NOTE, f"{_short(queue_name)} ({system}) was sent {_count(count, 'job')} since recording began, and "
                "none has run on this host",
                "compare the queue's name with those that workers consume", "JobsPublishedToNowhere", count,
            )  # fmt: skip


def _touched(now: Overview) -> tuple[set[tuple[str, str]], dict[tuple[str, str], float]]:
    """Return the queues from which workers of this host took jobs, and the jobs sent to each queue from this host."""
    touched = {place for place, count in now.reserved.items() if count}
    sent: dict[tuple[str, str], float] = defaultdict(float)
    for (system, _, queue_name), counts in now.jobs.items():
        if counts.ended or counts.active or counts.withdrawn:
            touched.add((system, queue_name))
        if counts.published:
            sent[system, queue_name] += counts.published
    return touched, sent


def _queue(name: str, queue: QueueState, present: float, *, never_ran_here: bool) -> Iterator[Finding]:
    depth = queue.depth or 0.0
    age = present - queue.oldest if queue.oldest is not None and depth else 0.0
    since = f", the next one for {span(age)}" if age >= 1 else ""
    if depth and queue.consumers == 0:
        yield Finding(
            PROBLEM, f"{_wait(depth)} in {name}{since}, and no worker consumes it",
            "start a worker for this queue, or correct its name", "JobQueueUnattended", depth,
        )  # fmt: skip
    elif depth and queue.consumers is None and never_ran_here:
        yield Finding(
            PROBLEM if age > QUEUE_OLD else NOTE,
            f"{_wait(depth)} in {name}{since}, and no job of it has run on this host since recording began",
            "start a worker for this queue, or correct its name, unless another host serves it",
            "JobQueueUnattended", depth,
        )  # fmt: skip
    elif age > QUEUE_OLD:
        yield Finding(
            PROBLEM, f"{_wait(depth)} in {name}{since}",
            "add workers if all are busy; otherwise look for what holds the jobs back", "JobQueueOld", age,
        )  # fmt: skip
    if queue.overdue_oldest is not None and present - queue.overdue_oldest > SCHEDULE_LATE:
        late = present - queue.overdue_oldest
        yield Finding(
            PROBLEM, f"a scheduled job of {name} has been due for {span(late)} and is not queued",
            "start a worker of the queue with its scheduler", "RqSchedulerLate", late,
        )  # fmt: skip
    if queue.orphaned:
        yield Finding(
            NOTE, f"the worker of {_count(queue.orphaned, 'started job')} of {name} no longer exists",
            "the next worker that cleans the registries fails or requeues them", "JobWorkersGone", queue.orphaned,
        )  # fmt: skip


def _stuck(now: Overview, jobs: Mapping[tuple[str, str], JobTypeCounts], present: float) -> Iterator[Finding]:
    """Report executions that take far longer than is usual, and systems of which they hold all slots."""
    held: dict[str, float] = defaultdict(float)
    found = []
    for (system, job_type), counts in sorted(jobs.items()):
        if counts.oldest is None:
            continue
        age, usual = present - counts.oldest, _usual(counts)
        if age <= (STUCK_UNKNOWN if usual is None else max(STUCK, STUCK_FACTOR * usual)):
            continue
        held[system] += counts.active
        known = f"; 99 % of those that ended took at most {span(usual)}" if usual else ""
        found.append(
            Finding(
                PROBLEM, f"an execution of {_short(job_type)} ({system}) has been running for {span(age)}{known}",
                "jobmetrics running names its process and job id: find what it waits for, then end it", "JobStuck", age,
            )
        )  # fmt: skip
    for system, active in sorted(held.items()):
        capacity = now.capacity.get(system, 0.0)
        if capacity and active >= capacity:
            yield Finding(
                PROBLEM, f"{capacity:.0f} of {capacity:.0f} slots of the {system} workers on this host are held by job "
                "types with an execution that does not end",
                "repair what they wait for, or restart the workers", "JobWorkersStuck", active,
            )  # fmt: skip
    yield from found


def _usual(counts: JobTypeCounts) -> float | None:
    """Return the 99th percentile of all recorded run times; None if too few executions ended."""
    if max(counts.durations.values(), default=0.0) < KNOWN:
        return None
    return quantile(counts.durations, 0.99)


def _recorded(name: str, counts: JobTypeCounts, present: float) -> Iterator[Finding]:
    """Judge all that was recorded. It shows troubles that are over too, so only a job that never succeeded is one."""
    tried = counts.failed + counts.retried
    decided = counts.failed + counts.succeeded
    if tried and not counts.succeeded and counts.last_success is None:
        yield Finding(
            PROBLEM if tried >= FAILURES else NOTE,
            f"{name} was tried {_count(tried, 'time')} and has never succeeded since recording began",
            "the workers' logs have the exceptions", "JobNoSuccess", tried,
        )  # fmt: skip
        return
    last = "" if counts.last_success is None else f"; the last success was {span(present - counts.last_success)} ago"
    if counts.failed >= FAILURES and counts.failed > FAILURE_RATIO * decided:
        ratio = counts.failed / decided
        yield Finding(
            NOTE, f"{ratio:.0%} of {_count(decided, 'execution')} of {name} failed since recording began{last}",
            "jobmetrics check --watch 60 shows whether it still fails", "JobFailureRatioHigh", ratio,
        )  # fmt: skip
    if counts.retried >= RETRIES and counts.retried > RETRY_RATIO * counts.ended:
        ratio = counts.retried / counts.ended
        yield Finding(
            NOTE, f"{ratio:.0%} of {_count(counts.ended, 'execution')} of {name} asked for a retry since recording "
            f"began{last}",
            "jobmetrics check --watch 60 shows whether it is still retried", "JobRetryStorm", ratio,
        )  # fmt: skip


def _lately(name: str, change: JobTypeCounts, counts: JobTypeCounts, seconds: float) -> Iterator[Finding]:
    """Judge what happened between two readings."""
    within = f"within {span(seconds)}"
    decided = change.failed + change.succeeded
    if change.failed + change.retried and not counts.succeeded and counts.last_success is None:
        tried = change.failed + change.retried
        yield Finding(
            PROBLEM, f"{name} was tried {_count(tried, 'time')} {within} and has never succeeded since recording began",
            "the workers' logs have the exceptions", "JobNoSuccess", tried,
        )  # fmt: skip
    elif change.failed >= FAILURES and change.failed > FAILURE_RATIO * decided:
        ratio = change.failed / decided
        yield Finding(
            PROBLEM, f"{ratio:.0%} of {_count(decided, 'execution')} of {name} failed {within}",
            "the workers' logs have the exceptions", "JobFailureRatioHigh", ratio,
        )  # fmt: skip
    enough = max(float(FAILURES), RETRIES * min(1.0, seconds / RETRY_SECONDS))
    if change.retried >= enough and change.retried > RETRY_RATIO * change.ended:
        ratio = change.retried / change.ended
        yield Finding(
            PROBLEM, f"{ratio:.0%} of {_count(change.ended, 'execution')} of {name} asked for a retry {within}",
            "look for a service that the jobs need and that is down", "JobRetryStorm", ratio,
        )  # fmt: skip
    elif often := change.attempts.get(MOST_TRIED, 0.0):
        yield Finding(
            PROBLEM, f"{name} ran {_count(often, 'time')} {within} for jobs with more than 20 attempts",
            "give the retries a limit", "JobRetriesEndless", often,
        )  # fmt: skip


def _losses(now: Overview, before: Overview | None, seconds: float) -> Iterator[Finding]:
    """Report workers and worker processes that died. Without an earlier reading it is not known when."""
    when = "since recording began" if before is None else f"within {span(seconds)}"
    state = NOTE if before is None else PROBLEM
    none: dict[str, float] = {}
    lost = _more(now.workers_lost, before.workers_lost if before else none)
    died = _more(now.processes_lost, before.processes_lost if before else none)
    started = _more(now.workers_started, before.workers_started) if before else none
    for system, count in lost.items():
        yield Finding(
            state, f"{_count(count, f'{system} worker')} ended without a shutdown {when}",
            "look for the kernel's or the supervisor's reason to kill them", "JobWorkersRestarting", count,
        )  # fmt: skip
    for system, count in started.items():
        if count >= RESTARTS and system not in lost:
            yield Finding(
                PROBLEM, f"{_count(count, f'{system} worker')} started {when}",
                "if they were not restarted on purpose, their logs have the reason of their end",
                "JobWorkersRestarting", count,
            )  # fmt: skip
    for system, count in died.items():
        yield Finding(
            state, f"{_count(count, f'{system} worker process')} died in a job {when}",
            "look for the kernel's out-of-memory messages and for crashes", "JobWorkerProcessesLost", count,
        )  # fmt: skip
    for (system, broker), count in sorted(now.stale.items()):
        if count:
            yield Finding(
                NOTE, f"{_count(count, f'{system} worker')} registered at broker {_short(broker)} without a fresh "
                "heartbeat",
                "look for workers that were killed or hang; registrations of killed ones expire",
                "JobWorkersGone", count,
            )  # fmt: skip


def _more(now: Mapping[str, float], before: Mapping[str, float]) -> dict[str, float]:
    """Return the counts that rose, and by how much."""
    rose = {system: count - before.get(system, 0.0) for system, count in sorted(now.items())}
    return {system: count for system, count in rose.items() if count > 0}


def _schedules(now: Overview, present: float) -> Iterator[Finding]:
    """Report schedulers that send nothing, and entries that are late."""
    for system in sorted({system for system, _ in now.due}):
        last = max((sent for (its, _), sent in now.sent.items() if its == system), default=0.0)
        late = {
            entry: due
            for (its, entry), due in sorted(now.due.items())
            if its == system and present - due > SCHEDULE_LATE and (present - due < SCHEDULE_REMOVED or due > last)
        }
        unsent = [due for due in late.values() if due >= last]
        if unsent:
            behind = present - min(unsent)
            yield Finding(
                PROBLEM, f"the {system} scheduler should have sent {_short(min(late, key=lambda each: late[each]))} "
                f"{span(behind)} ago, and has sent nothing since",
                "start the scheduler", "JobSchedulerDown", behind,
            )  # fmt: skip
            continue
        for entry, due in late.items():
            yield Finding(
                PROBLEM, f"the schedule entry {_short(entry)} ({system}) is {span(present - due)} late",
                "check whether it is enabled", "JobScheduleEntryLate", present - due,
            )  # fmt: skip
    for name, times in (("is late by", now.cron_next), ("has had no heartbeat for", now.cron_heartbeat)):
        for (system, broker), timestamp in sorted(times.items()):
            if present - timestamp > CRON_LATE:
                yield Finding(
                    PROBLEM, f"the cron scheduler of {system} (broker {_short(broker)}) {name} "
                    f"{span(present - timestamp)}",
                    "start it", "RqCronLate", present - timestamp,
                )  # fmt: skip
