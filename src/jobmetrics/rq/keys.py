"""What RQ keeps in Redis and how to read it: the same in every release from 1.16 to 3.0, unless said otherwise."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from typing import Any

from rq import defaults

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
