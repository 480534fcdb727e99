"""Everything that RQ's Redis says of queues, workers and schedulers, in three round trips at any number of them.

Only commands that read are sent: `Queue.count` and `len(registry)` of RQ itself clean up as a side effect. The
clock is the server's.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import redis

from jobmetrics import families as f
from jobmetrics.collecting import Collector, CollectorOptions, Reading, Target, capped, without_secrets
from jobmetrics.errors import CollectorError, SettingsError
from jobmetrics.rq import keys
from jobmetrics.rq.connecting import connection
from jobmetrics.rq.system import SYSTEM

logger = logging.getLogger("jobmetrics")


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
        self._left_out: frozenset[str] = frozenset()
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
            [("SMEMBERS", keys.QUEUES), ("SMEMBERS", keys.WORKERS), ("TIME",),
             ("ZRANGE", keys.CRON_SCHEDULERS, 0, -1, "WITHSCORES")]
        )  # fmt: skip
        if isinstance(listed, Exception) and not self._queues:
            raise listed
        now = float(seconds) + float(micros) / 1e6
        queues, rest = capped(self._queues or keys.queue_names(listed), self._max_queues)
        workers = None if isinstance(workers, Exception) else workers
        schedulers = None if isinstance(crons, Exception) else keys.scored(crons)
        questions = [question for queue in queues for question in keys.about_queue(queue, now)]
        questions += [keys.depth_of(queue) for queue in rest]
        questions += [("HMGET", worker, "state", "last_heartbeat") for worker in workers or ()]
        questions += [("HGET", keys.CRON_SCHEDULER + name, "cron_jobs") for name, _ in schedulers or ()]
        answers = iter(self._ask(questions))
        found = self._right(queues, {queue: [next(answers) for _ in range(keys.QUESTIONS)] for queue in queues})
        others = [next(answers) for _ in rest]
        hashes = [next(answers) for _ in workers or ()]
        plans = list(answers)
        heads = [job for answer in found.values() for job in answer.head]
        queued = dict(zip(heads, self._ask([("HGET", keys.JOB + job, "enqueued_at") for job in heads]), strict=True))
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

    def _right(self, queues: Sequence[str], answers: dict[str, list[Any]]) -> dict[str, keys.QueueAnswer]:
        """What Redis says of each queue. One that has a key of another type is left out.

        Raises:
            ResponseError: when that is true of every queue.
        """
        wrong = {queue: each for queue, each in answers.items() if any(isinstance(one, Exception) for one in each)}
        if wrong and len(wrong) == len(answers):
            raise next(one for each in wrong.values() for one in each if isinstance(one, Exception))
        for queue in wrong.keys() - self._left_out:
            logger.warning("jobmetrics: %s: queue %r is left out, a key of it has another type", self._where, queue)
        self._left_out = frozenset(wrong)
        return {queue: keys.QueueAnswer.of(answers[queue]) for queue in queues if queue not in wrong}

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

    def _of_queue(self, queue: str, answer: keys.QueueAnswer, queued: dict[bytes, Any]) -> list[Reading]:
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
        moments = (keys.moment(queued[job]) for job in answer.head)
        oldest = next((moment for moment in moments if moment is not None), None)
        if oldest is not None:
            readings.append(Reading(f.JOBS_QUEUE_OLDEST, labels, oldest))
        if answer.overdue and answer.first_scheduled is not None:
            readings.append(Reading(f.JOBS_QUEUE_OVERDUE_OLDEST, labels, answer.first_scheduled))
        return readings

    def _of_workers(self, hashes: Sequence[Sequence[Any]]) -> list[Reading]:
        labels = (SYSTEM, self.broker)
        states = dict.fromkeys(keys.WORKER_STATES, 0)
        stale = 0
        heartbeats = []
        for state, heartbeat in hashes:
            if state is None and heartbeat is None:  # RQ lets the hash expire when heartbeats stay away
                stale += 1
                continue
            known = keys.text(state)
            states[known if known in states else keys.OTHER_STATE] += 1
            heartbeats.append(keys.moment(heartbeat))
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
        planned = min((moment for plan in plans for moment in keys.planned(plan)), default=None)
        if planned is not None:
            readings.append(Reading(f.JOBS_CRON_NEXT, labels, planned))
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
