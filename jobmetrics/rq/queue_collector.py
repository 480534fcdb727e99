"""Everything that RQ's Redis says of queues, workers and schedulers, in three round trips at any number of them.

Only commands that read are sent: `Queue.count` and `len(registry)` of RQ itself clean up as a side effect. The
clock is the server's.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel
from rq import defaults

from jobmetrics import families as f
from jobmetrics.collector_api import Collector, CollectorOptions, Reading, Target, WrongTypes, capped, without_secrets
from jobmetrics.errors import CollectorError, SettingsError
from jobmetrics.rq.system import SYSTEM


class RedisQueues:
    """Reads the queues of one RQ.

    queues: their names; empty: all that RQ lists. max_queues: those beyond it share one series, of their depth.
    """

    name = SYSTEM

    def __init__(self, target: Target, queues: Sequence[str], timeout: float, max_queues: int) -> None:
        self.broker = target.name
        self._where = target.safe_url
        self._queues = tuple(dict.fromkeys(queues))
        self._max_queues = max_queues
        self._wrong_types = WrongTypes(self._where)
        self._client = connection(target, timeout)
        password = self._client.connection_pool.connection_kwargs.get("password")
        self._password = password if isinstance(password, str) else None

    def collect(self) -> list[Reading]:
        """All readings of queues, workers and schedulers.

        Raises:
            CollectorError: when Redis does not answer as it should.
        """
        try:
            return self._collect()
        # TypeError: an unknown option in the URL's query; ValueError: what is there is not RQ's
        except (redis.RedisError, OSError, TypeError, ValueError) as error:
            reason = without_secrets(str(error), self._password)
            raise CollectorError(f"{self._where} cannot be read: {reason}") from None

    def _collect(self) -> list[Reading]:
        listed, workers, (seconds, micros), crons = self._ask(
            [("SMEMBERS", QUEUES), ("SMEMBERS", WORKERS), ("TIME",),
             ("ZRANGE", CRON_SCHEDULERS, 0, -1, "WITHSCORES")]
        )  # fmt: skip
        if isinstance(listed, Exception) and not self._queues:
            raise listed
        now = float(seconds) + float(micros) / 1e6
        queues, rest = capped(self._queues or queue_names(listed), self._max_queues)
        workers = None if isinstance(workers, Exception) else workers
        schedulers = None if isinstance(crons, Exception) else scored(crons)
        questions = [question for queue in queues for question in about_queue(queue, now)]
        questions += [depth_of(queue) for queue in rest]
        questions += [("HMGET", worker, "state", "last_heartbeat") for worker in workers or ()]
        questions += [("HGET", CRON_SCHEDULER + name, "cron_jobs") for name, _ in schedulers or ()]
        answers = iter(self._ask(questions))
        asked = {queue: [next(answers) for _ in range(QUESTIONS)] for queue in queues}
        found = {queue: QueueAnswer.of(each) for queue, each in self._wrong_types.leave_out(asked).items()}
        others = [next(answers) for _ in rest]
        hashes = [next(answers) for _ in workers or ()]
        plans = list(answers)
        heads = [job for answer in found.values() for job in answer.head]
        queued = dict(zip(heads, self._ask([("HGET", JOB + job, "enqueued_at") for job in heads]), strict=True))
        readings: list[Reading] = []
        for queue, answer in found.items():
            readings += self._of_queue(queue, answer, queued)
        if rest:
            depth = sum(int(each) for each in others if not isinstance(each, Exception))
            readings.append(Reading(f.JOBS_QUEUE_DEPTH, (SYSTEM, self.broker, f.OVERFLOW), float(depth)))
        if workers is not None:
            readings += self._of_workers([each for each in hashes if not isinstance(each, Exception)])
        if schedulers is not None:
            readings += self._of_crons(schedulers, [each for each in plans if not isinstance(each, Exception)])
        return readings

    def _ask(self, questions: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Send them in one go; one round trip, none for no question. WRONGTYPE is an exception among the answers.

        Raises:
            ResponseError: when Redis refuses a command for another reason.
        """
        if not questions:
            return []
        with self._client.pipeline(transaction=False) as pipe:
            for question in questions:
                pipe.execute_command(*question)  # type: ignore[no-untyped-call]  # redis-py types commands, not this
            answers = pipe.execute(raise_on_error=False)
        for answer in answers:
            if isinstance(answer, Exception) and not str(answer).startswith("WRONGTYPE"):
                raise answer
        return list(answers)

    def _of_queue(self, queue: str, answer: QueueAnswer, queued: dict[bytes, Any]) -> list[Reading]:
        labels = (SYSTEM, self.broker, queue)
        readings = [
            Reading(f.JOBS_QUEUE_DEPTH, labels, float(answer.depth)),
            *(Reading(f.JOBS_QUEUE_JOBS, (*labels, state), float(number)) for state, number in answer.states.items()),
            Reading(f.JOBS_QUEUE_ORPHANED, labels, float(answer.orphaned)),
            Reading(f.JOBS_QUEUE_OVERDUE, labels, float(answer.overdue)),
            Reading(f.JOBS_QUEUE_CONSUMERS, labels, float(answer.workers)),
            Reading(f.JOBS_QUEUE_SCHEDULERS, labels, float(answer.has_scheduler)),
        ]
        # The job next to run may have expired: then it is skipped, as RQ will.
        moments = (moment(queued[job]) for job in answer.head)
        oldest = next((moment for moment in moments if moment is not None), None)
        if oldest is not None:
            readings.append(Reading(f.JOBS_QUEUE_OLDEST, labels, oldest))
        if answer.overdue and answer.first_scheduled is not None:
            readings.append(Reading(f.JOBS_QUEUE_OVERDUE_OLDEST, labels, answer.first_scheduled))
        return readings

    def _of_workers(self, hashes: Sequence[Sequence[Any]]) -> list[Reading]:
        labels = (SYSTEM, self.broker)
        states = dict.fromkeys(WORKER_STATES, 0)
        stale = 0
        heartbeats = []
        for state, heartbeat in hashes:
            if state is None and heartbeat is None:  # RQ lets the hash expire when heartbeats stay away
                stale += 1
                continue
            known = text(state)
            states[known if known in states else OTHER_STATE] += 1
            heartbeats.append(moment(heartbeat))
        readings = [Reading(f.JOBS_REGISTERED_WORKERS, (*labels, state), float(n)) for state, n in states.items()]
        readings.append(Reading(f.JOBS_REGISTERED_WORKERS_STALE, labels, float(stale)))
        oldest = min((each for each in heartbeats if each is not None), default=None)
        if oldest is not None:
            readings.append(Reading(f.JOBS_REGISTERED_WORKERS_HEARTBEAT, labels, oldest))
        return readings

    def _of_crons(self, schedulers: Sequence[tuple[bytes, float]], plans: Sequence[Any]) -> list[Reading]:
        labels = (SYSTEM, self.broker)
        readings = [Reading(f.JOBS_CRON_SCHEDULERS, labels, float(len(schedulers)))]
        if schedulers:
            readings.append(Reading(f.JOBS_CRON_HEARTBEAT, labels, min(score for _, score in schedulers)))
        next_run = min((run for plan in plans for run in planned(plan)), default=None)
        if next_run is not None:
            readings.append(Reading(f.JOBS_CRON_NEXT, labels, next_run))
        return readings

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def collectors(options: CollectorOptions) -> Iterable[Collector]:
    """One collector an RQ Redis.

    Raises:
        SettingsError: for a URL that is not allowed, or queues without a URL.
    """
    urls: Sequence[Target] = options.get("rq_urls", ())
    queues: Sequence[str] = options.get("rq_queues", ())
    if queues and not urls:
        raise SettingsError("--rq-queue needs --rq-url, which says where the queues are")
    return [RedisQueues(target, queues, options.timeout, options.max_queues) for target in urls]


# From RQ 3 on it comes from the environment variable RQ_KEY_PREFIX; RQ reads and checks it.
_PREFIX: str = getattr(defaults, "RQ_KEY_PREFIX", "rq")

QUEUES = f"{_PREFIX}:queues"
WORKERS = f"{_PREFIX}:workers"
CRON_SCHEDULERS = f"{_PREFIX}:cron_schedulers"  # from 2.7 on
QUEUE = f"{_PREFIX}:queue:".encode()
JOB = f"{_PREFIX}:job:".encode()
CRON_SCHEDULER = f"{_PREFIX}:cron_scheduler:".encode()

# The state's name here, and its registry's in Redis. A job is in one of them at most.
_REGISTRIES = {
    state: f"{_PREFIX}:{registry}:".encode()
    for state, registry in (
        ("started", "wip"),
        ("deferred", "deferred"),
        ("scheduled", "scheduled"),
        ("finished", "finished"),
        ("failed", "failed"),
        ("canceled", "canceled"),
        ("ready_to_enqueue", "ready"),  # from 3.0 on
    )
}
_WORKERS_OF_QUEUE = f"{_PREFIX}:workers:".encode()
_SCHEDULER_LOCK = f"{_PREFIX}:scheduler-lock:".encode()

OTHER_STATE = "other"
WORKER_STATES = ("started", "idle", "busy", "suspended", OTHER_STATE)

HEADS = 5  # jobs at a queue's head that are asked for the moment they were queued


def about_queue(queue: str, now: float) -> list[tuple[Any, ...]]:
    """What to ask about a queue, so many as QUESTIONS. now: epoch seconds by the server's clock."""
    name = queue.encode("utf-8", "surrogateescape")
    wip, scheduled = _REGISTRIES["started"] + name, _REGISTRIES["scheduled"] + name
    return [
        depth_of(queue),
        *(("ZCARD", registry + name) for registry in _REGISTRIES.values()),
        ("ZCOUNT", wip, 0, repr(now)),
        ("ZCOUNT", scheduled, 0, repr(now)),
        ("ZRANGE", scheduled, 0, 0, "WITHSCORES"),
        ("LRANGE", QUEUE + name, 0, HEADS - 1),
        ("SCARD", _WORKERS_OF_QUEUE + name),
        ("EXISTS", _SCHEDULER_LOCK + name),
    ]


def depth_of(queue: str) -> tuple[Any, ...]:
    """What to ask about a queue of which only the depth is shown."""
    return "LLEN", QUEUE + queue.encode("utf-8", "surrogateescape")


QUESTIONS = len(about_queue("", 0.0))


@dataclass(frozen=True)
class QueueAnswer:
    """What Redis says of a queue.

    states: jobs by state; head: the ids of those next to run; first_scheduled: epoch seconds of the earliest
    scheduled job, None when there is none.
    """

    depth: int
    states: dict[str, int]
    orphaned: int
    overdue: int
    first_scheduled: float | None
    head: list[bytes]
    workers: int
    has_scheduler: bool

    @classmethod
    def of(cls, answers: Sequence[Any]) -> QueueAnswer:
        """The answers to `about_queue`, in its order."""
        depth, *counts = answers[: 1 + len(_REGISTRIES)]
        orphaned, overdue, first, head, workers, locked = answers[1 + len(_REGISTRIES) :]
        states = {state: int(count) for state, count in zip(_REGISTRIES, counts, strict=True)}
        scheduled = [score for _, score in scored(first)]
        return cls(
            int(depth),
            states,
            int(orphaned),
            int(overdue),
            scheduled[0] if scheduled else None,
            [_bytes(job) for job in head],
            int(workers),
            bool(locked),
        )


def queue_names(members: Iterable[object]) -> tuple[str, ...]:
    """The queues that RQ lists. A name that is no text comes back as it was when it is encoded again."""
    prefix = QUEUE.decode()
    found = (text(member) for member in members)
    return tuple(sorted(key[len(prefix) :] for key in found if key.startswith(prefix)))


def text(member: object) -> str:
    """An answer as text."""
    return member.decode("utf-8", "surrogateescape") if isinstance(member, bytes) else str(member)


def _bytes(member: object) -> bytes:
    return member if isinstance(member, bytes) else str(member).encode("utf-8", "surrogateescape")


def scored(members: Sequence[Any]) -> list[tuple[bytes, float]]:
    """A sorted set with its scores, as pairs (redis-py, RESP3) or flat (RESP2); only finite scores."""
    flat: list[Any] = []
    for member in members:
        flat += member if isinstance(member, (list, tuple)) else [member]
    pairs = ((_bytes(name), float(score)) for name, score in zip(flat[::2], flat[1::2], strict=True))
    return [(name, score) for name, score in pairs if math.isfinite(score)]


def moment(answer: object) -> float | None:
    """A moment as RQ writes it (2026-01-31T23:59:59.123456Z, without the fraction in old releases), in epoch
    seconds; None for what is none."""
    if answer is None:
        return None
    try:
        found = datetime.fromisoformat(text(answer).removesuffix("Z"))
    except ValueError:
        return None
    return (found if found.tzinfo else found.replace(tzinfo=timezone.utc)).timestamp()


def planned(jobs: object) -> list[float]:
    """When a cron scheduler will send its jobs next, in epoch seconds; nothing for what is no such list."""
    try:
        found = [job.get("next_enqueue_time") for job in json.loads(text(jobs))] if jobs else []
    except (ValueError, AttributeError, TypeError):
        return []
    return [each for each in map(moment, found) if each is not None]


_DATABASE = re.compile(r"(/[0-9]*)?\Z")
_SENTINEL_PATH = re.compile(r"/(?P<master>[^/]+)(/(?P<database>[0-9]+))?\Z")
_SENTINEL_PORT = 26379


def connection(target: Target, timeout: float) -> redis.Redis:
    """A client that waits so many seconds at the most; it connects when it is first used.

    sentinel://[USER:PASSWORD@]HOST:PORT/MASTER[/DATABASE][;sentinel://HOST:PORT...]: the credentials are the
    master's; the sentinels' own password is the option sentinel_password in the query.

    Raises:
        SettingsError: for a URL that is no such thing; it shows no password.
    """
    try:
        return _sentinel(target.url, timeout) if target.scheme == "sentinel" else _direct(target.url, timeout)
    except ValueError:  # what it says may hold a part of the password
        raise SettingsError(
            f"--rq-url: {target.safe_url!r} is not allowed; it takes redis://HOST:PORT/NUMBER, rediss://, unix:// "
            "or sentinel://HOST:PORT/MASTER/NUMBER"
        ) from None


def _direct(url: str, timeout: float) -> redis.Redis:
    parts = urlsplit(url)
    if parts.scheme != "unix" and not _DATABASE.match(parts.path):
        raise ValueError("redis-py takes any other path for database 0")
    return redis.Redis.from_url(
        url,
        socket_timeout=timeout,
        socket_connect_timeout=timeout / 2,  # it is tried twice
        retry=Retry(NoBackoff(), 1),
    )


def _sentinel(url: str, timeout: float) -> redis.Redis:
    first, *others = re.split(r";(?=sentinel://)", url)
    parts = urlsplit(first)
    path = _SENTINEL_PATH.match(parts.path)
    addresses = [
        (part.hostname or "localhost", part.port or _SENTINEL_PORT) for part in map(urlsplit, [first, *others])
    ]
    if path is None:
        raise ValueError("no master is named")
    waits = {"socket_timeout": timeout, "socket_connect_timeout": timeout / 2}
    own = parse_qs(parts.query).get("sentinel_password", [None])[0]
    sentinel = Sentinel(  # type: ignore[no-untyped-call]  # redis-py types it in part
        addresses, sentinel_kwargs={**waits, "password": own}
    )
    master: redis.Redis = sentinel.master_for(  # type: ignore[no-untyped-call]  # as above
        unquote(path["master"]),
        db=int(path["database"] or 0),
        username=unquote(parts.username) if parts.username else None,
        password=unquote(parts.password) if parts.password else None,
        retry=Retry(NoBackoff(), 1),
        **waits,
    )
    return master
