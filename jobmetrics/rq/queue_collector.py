"""The collector of RQ's queues, workers and schedulers: three round trips to Redis for any number of them.

It sends only commands that read: RQ's `Queue.count` and `len(registry)` clean up as a side effect. Times are compared
with the Redis server's clock.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Sequence
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
from jobmetrics.collector_api import (
    Collector,
    CollectorOptions,
    Reading,
    Target,
    WrongTypes,
    capped,
    without_secrets,
)
from jobmetrics.errors import CollectorError, SettingsError
from jobmetrics.rq import SYSTEM


class RegisteredQueues:
    """Reads the RQ queues of one Redis.

    Args:
        target: the Redis.
        queues: names of queues; empty for all that RQ lists.
        timeout: seconds.
        max_queues: of the queues beyond this number only the summed depth is shown.
        recorded: returns the names of the queues that the registry directory knows for a job system. Those that this
            Redis has are read as well.
    """

    name = SYSTEM

    def __init__(
        self,
        target: Target,
        queues: Sequence[str],
        timeout: float,
        max_queues: int,
        recorded: Callable[[str], Sequence[str]],
    ) -> None:
        self.broker = target.name
        self._where = target.safe_url
        self._queues = tuple(dict.fromkeys(queues))
        self._max_queues = max_queues
        self._recorded = recorded
        self._used: set[str] = set()  # queues of the registry directory that RQ does not list and that were not empty
        self._wrong_types = WrongTypes(self._where)
        self._client = connection(target, timeout)
        password = self._client.connection_pool.connection_kwargs.get("password")
        self._password = password if isinstance(password, str) else None

    def collect(self) -> list[Reading]:
        """Return the readings of queues, workers and schedulers.

        Raises:
            CollectorError: when Redis cannot be reached, refuses a command or returns an unexpected value.
        """
        try:
            return self._collect()
        # TypeError: an unknown option in the URL's query; ValueError: a key does not hold RQ's data
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
        listed = dict.fromkeys(() if isinstance(listed, Exception) else queue_names(listed))
        here = dict.fromkeys(self._queues) or listed
        further = [queue for queue in self._recorded(SYSTEM) if queue not in here]
        queues, rest = capped((*here, *further), self._max_queues)
        workers = None if isinstance(workers, Exception) else workers
        schedulers = None if isinstance(crons, Exception) else current(scored(crons), now)
        commands = [command for queue in queues for command in queue_commands(queue, now)]
        commands += [depth_of(queue) for queue in rest]
        commands += [("HMGET", worker, "state", "last_heartbeat") for worker in workers or ()]
        commands += [("HGET", CRON_SCHEDULER + name, "cron_jobs") for name, _ in schedulers or ()]
        answers = iter(self._ask(commands))
        asked = {queue: [next(answers) for _ in range(COMMANDS)] for queue in queues}
        found = {queue: QueueAnswer.of(each) for queue, each in self._wrong_types.leave_out(asked).items()}
        self._used = {queue for queue in further if queue in self._used or queue in listed or found.get(queue)}
        found = {queue: answer for queue, answer in found.items() if queue in here or queue in self._used}
        others = [next(answers) for _ in rest]
        hashes = {worker: next(answers) for worker in workers or ()}
        plans = list(answers)
        heads = [job for answer in found.values() for job in answer.head]
        queued = dict(zip(heads, self._ask([("HGET", JOB + job, "enqueued_at") for job in heads]), strict=True))
        alive = None if workers is None else {_bytes(worker) for worker in workers if is_alive(hashes[worker])}
        readings: list[Reading] = []
        for queue, answer in found.items():
            readings += self._of_queue(queue, answer, queued, alive)
        if rest:
            depth = sum(int(each) for each in others if not isinstance(each, Exception))
            readings.append(Reading(f.JOBS_QUEUE_DEPTH, (SYSTEM, self.broker, f.OVERFLOW), float(depth)))
        if workers is not None:
            readings += self._of_workers([each for each in hashes.values() if not isinstance(each, Exception)])
        if schedulers is not None:
            plans = [each for each in plans if not isinstance(each, Exception)]
            readings += self._of_crons([at for _, at in schedulers], plans, now)
        return readings

    def _ask(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        """Send these commands in one round trip.

        Returns:
            The answers. A WRONGTYPE error is returned as one of them.

        Raises:
            ResponseError: when Redis refuses a command for another reason.
        """
        if not commands:
            return []
        with self._client.pipeline(transaction=False) as pipe:
            for command in commands:
                pipe.execute_command(*command)  # type: ignore[no-untyped-call]  # redis-py types commands, not this
            answers = pipe.execute(raise_on_error=False)
        for answer in answers:
            if isinstance(answer, Exception) and not str(answer).startswith("WRONGTYPE"):
                raise answer
        return list(answers)

    def _of_queue(
        self, queue: str, answer: QueueAnswer, queued: dict[bytes, Any], alive: Collection[bytes] | None
    ) -> list[Reading]:
        """Return the readings of a queue. alive: keys of the living workers; None if unknown."""
        labels = (SYSTEM, self.broker, queue)
        readings = [
            Reading(f.JOBS_QUEUE_DEPTH, labels, float(answer.depth)),
            *(Reading(f.JOBS_QUEUE_JOBS, (*labels, state), float(number)) for state, number in answer.states.items()),
            Reading(f.JOBS_QUEUE_ORPHANED, labels, float(answer.orphaned)),
            Reading(f.JOBS_QUEUE_OVERDUE, labels, float(answer.overdue)),
            Reading(f.JOBS_QUEUE_SCHEDULERS, labels, float(answer.has_scheduler)),
        ]
        if alive is not None:  # RQ removes dead workers from its sets only when asked
            consumers = sum(worker in alive for worker in answer.workers)
            readings.append(Reading(f.JOBS_QUEUE_CONSUMERS, labels, float(consumers)))
        # A job at the head may have expired. Then it is skipped, as in RQ.
        times = (timestamp(queued[job]) for job in answer.head)
        oldest = next((at for at in times if at is not None), None)
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
        for answer in hashes:
            if not is_alive(answer):
                stale += 1
                continue
            state, heartbeat = answer
            known = text(state)
            states[known if known in states else OTHER_STATE] += 1
            heartbeats.append(timestamp(heartbeat))
        readings = [Reading(f.JOBS_REGISTERED_WORKERS, (*labels, state), float(n)) for state, n in states.items()]
        readings.append(Reading(f.JOBS_REGISTERED_WORKERS_STALE, labels, float(stale)))
        oldest = min((each for each in heartbeats if each is not None), default=None)
        if oldest is not None:
            readings.append(Reading(f.JOBS_REGISTERED_WORKERS_HEARTBEAT, labels, oldest))
        return readings

    def _of_crons(self, heartbeats: Sequence[float], plans: Sequence[Any], now: float) -> list[Reading]:
        labels = (SYSTEM, self.broker)
        fresh = sum(now - at <= CRON_TTL for at in heartbeats)
        readings = [Reading(f.JOBS_CRON_SCHEDULERS, labels, float(fresh))]
        if heartbeats:
            readings.append(Reading(f.JOBS_CRON_HEARTBEAT, labels, min(heartbeats)))
        next_run = min((run for plan in plans for run in next_runs(plan)), default=None)
        if next_run is not None:
            readings.append(Reading(f.JOBS_CRON_NEXT, labels, next_run))
        return readings

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def collectors(options: CollectorOptions) -> Iterable[Collector]:
    """Return one collector for each Redis.

    Raises:
        SettingsError: for a URL that is not allowed, or queues without a URL.
    """
    urls: Sequence[Target] = options.get("rq_urls", ())
    queues: Sequence[str] = options.get("rq_queues", ())
    if queues and not urls:
        raise SettingsError("--rq-queue needs --rq-url, which names the Redis of the queues")
    return [
        RegisteredQueues(target, queues, options.timeout, options.max_queues, options.recorded_queues)
        for target in urls
    ]


# From RQ 3 on RQ reads it from the environment variable RQ_KEY_PREFIX, and checks it.
_PREFIX: str = getattr(defaults, "RQ_KEY_PREFIX", "rq")

QUEUES = f"{_PREFIX}:queues"
WORKERS = f"{_PREFIX}:workers"
CRON_SCHEDULERS = f"{_PREFIX}:cron_schedulers"  # from 2.7 on
QUEUE = f"{_PREFIX}:queue:".encode()
JOB = f"{_PREFIX}:job:".encode()
CRON_SCHEDULER = f"{_PREFIX}:cron_scheduler:".encode()

# The value of the label `state`, and the key prefix of its registry. A job is in at most one registry.
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

HEADS = 5  # jobs at the head of a queue that are asked for their enqueue time


def queue_commands(queue: str, now: float) -> list[tuple[Any, ...]]:
    """Return the commands that read a queue, always COMMANDS of them. now: epoch seconds of the server's clock."""
    name = queue.encode("utf-8", "surrogateescape")
    wip, scheduled = _REGISTRIES["started"] + name, _REGISTRIES["scheduled"] + name
    return [
        depth_of(queue),
        *(("ZCARD", registry + name) for registry in _REGISTRIES.values()),
        ("ZCOUNT", wip, 0, repr(now)),
        ("ZCOUNT", scheduled, 0, repr(now)),
        ("ZRANGE", scheduled, 0, 0, "WITHSCORES"),
        ("LRANGE", QUEUE + name, 0, HEADS - 1),
        ("SMEMBERS", _WORKERS_OF_QUEUE + name),
        ("EXISTS", _SCHEDULER_LOCK + name),
    ]


def depth_of(queue: str) -> tuple[Any, ...]:
    """Return the command that reads the depth of a queue."""
    return "LLEN", QUEUE + queue.encode("utf-8", "surrogateescape")


COMMANDS = len(queue_commands("", 0.0))


@dataclass(frozen=True)
class QueueAnswer:
    """The answers about one queue.

    states: jobs by state; head: the ids of the next jobs; first_scheduled: epoch seconds of the earliest scheduled job,
    None if there is none; workers: keys of the queue's workers, dead ones included.
    """

    depth: int
    states: dict[str, int]
    orphaned: int
    overdue: int
    first_scheduled: float | None
    head: list[bytes]
    workers: list[bytes]
    has_scheduler: bool

    def __bool__(self) -> bool:
        """Whether the queue has anything: a job in any state, a worker or a scheduler."""
        return bool(self.depth or any(self.states.values()) or self.workers or self.has_scheduler)

    @classmethod
    def of(cls, answers: Sequence[Any]) -> QueueAnswer:
        """Read the answers to `queue_commands`, in its order."""
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
            [_bytes(worker) for worker in workers],
            bool(locked),
        )


def queue_names(members: Iterable[object]) -> tuple[str, ...]:
    """Return the queues that RQ lists. Bytes that are not UTF-8 survive decoding and encoding."""
    prefix = QUEUE.decode()
    found = (text(member) for member in members)
    return tuple(sorted(key[len(prefix) :] for key in found if key.startswith(prefix)))


def text(member: object) -> str:
    """Return an answer as a string."""
    return member.decode("utf-8", "surrogateescape") if isinstance(member, bytes) else str(member)


def _bytes(member: object) -> bytes:
    return member if isinstance(member, bytes) else str(member).encode("utf-8", "surrogateescape")


def scored(members: Sequence[Any]) -> list[tuple[bytes, float]]:
    """Return the members of a sorted set that have a finite score. RESP3 returns pairs, RESP2 a flat list."""
    flat: list[Any] = []
    for member in members:
        flat += member if isinstance(member, (list, tuple)) else [member]
    pairs = ((_bytes(name), float(score)) for name, score in zip(flat[::2], flat[1::2], strict=True))
    return [(name, score) for name, score in pairs if math.isfinite(score)]


def is_alive(answer: Any) -> bool:
    """Return whether a worker has state or last heartbeat. RQ's time to live removes them when heartbeats stop."""
    return not isinstance(answer, Exception) and any(each is not None for each in answer)


CRON_TTL = 120.0  # seconds without a heartbeat after which RQ removes a cron scheduler, when asked for the list


def current(schedulers: Sequence[tuple[bytes, float]], now: float) -> Sequence[tuple[bytes, float]]:
    """Return the cron schedulers with a fresh heartbeat, or all if none has one. now: epoch seconds.

    Without this, a scheduler that was replaced would look late until RQ removes it.
    """
    return [each for each in schedulers if now - each[1] <= CRON_TTL] or schedulers


def timestamp(answer: object) -> float | None:
    """Return one of RQ's times in epoch seconds; None if it is missing or invalid.

    The format is 2026-01-31T23:59:59.123456Z, in old releases without the fraction.
    """
    if answer is None:
        return None
    try:
        found = datetime.fromisoformat(text(answer).removesuffix("Z"))
    except ValueError:
        return None
    return (found if found.tzinfo else found.replace(tzinfo=timezone.utc)).timestamp()


def next_runs(jobs: object) -> list[float]:
    """Return when a cron scheduler sends its jobs next, in epoch seconds; empty if the list is missing or invalid."""
    try:
        found = [job.get("next_enqueue_time") for job in json.loads(text(jobs))] if jobs else []
    except (ValueError, AttributeError, TypeError):
        return []
    return [each for each in map(timestamp, found) if each is not None]


_DATABASE = re.compile(r"(/[0-9]*)?\Z")
_SENTINEL_PATH = re.compile(r"/(?P<master>[^/]+)(/(?P<database>[0-9]+))?\Z")
_SENTINEL_PORT = 26379


def connection(target: Target, timeout: float) -> redis.Redis:
    """Return a client that connects when it is first used.

    A Sentinel's URL is sentinel://[USER:PASSWORD@]HOST:PORT/MASTER[/DATABASE][;sentinel://HOST:PORT...]. Its
    credentials are the master's; sentinel_password in the query is the sentinels' password.

    Args:
        target: the broker.
        timeout: seconds that the client waits for an answer.

    Raises:
        SettingsError: for a URL that is not allowed. The message shows no password.
    """
    try:
        return _sentinel(target.url, timeout) if target.scheme == "sentinel" else _direct(target.url, timeout)
    except ValueError:  # its message may contain a part of the password
        raise SettingsError(
            f"--rq-url: {target.safe_url!r} is not allowed; it takes redis://HOST:PORT/NUMBER, rediss://, unix:// "
            "or sentinel://HOST:PORT/MASTER/NUMBER"
        ) from None


def _direct(url: str, timeout: float) -> redis.Redis:
    parts = urlsplit(url)
    if parts.scheme != "unix" and not _DATABASE.match(parts.path):
        raise ValueError("redis-py treats any other path as database 0")
    return redis.Redis.from_url(
        url,
        socket_timeout=timeout,
        socket_connect_timeout=timeout / 2,  # two attempts
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
        raise ValueError("the URL names no master")
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
