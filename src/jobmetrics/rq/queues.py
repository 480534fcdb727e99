"""Queue depth of RQ, read from its Redis in two round trips.

Only commands that read are sent: `Queue.count` and `len(registry)` of RQ itself clean up as a side effect.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from jobmetrics.collecting import Collector, CollectorOptions, Reading, Target, without_secrets
from jobmetrics.errors import CollectorError, SettingsError
from jobmetrics.families import JOBS_QUEUE_DEPTH

SYSTEM = "rq"

# rq.Queue.redis_queues_keys and redis_queue_namespace_prefix, the same in every release from 1.16 to 2.12.
QUEUES_KEY = "rq:queues"
QUEUE_PREFIX = "rq:queue:"

_DATABASE = re.compile(r"(/[0-9]*)?\Z")


class RedisQueues:
    """Reads the queues of one RQ.

    queues: their names; empty: all that RQ lists.
    """

    name = SYSTEM

    def __init__(self, target: Target, queues: Sequence[str], timeout: float) -> None:
        self.broker = target.name
        self._where = target.safe_url
        self._queues = tuple(dict.fromkeys(queues))
        try:
            self._client = redis.Redis.from_url(
                target.url,
                socket_timeout=timeout,
                socket_connect_timeout=timeout / 2,  # it is tried twice
                retry=Retry(NoBackoff(), 1),
            )
            if urlsplit(target.url).scheme != "unix" and not _DATABASE.match(urlsplit(target.url).path):
                raise ValueError("redis-py takes any other path for database 0")
        except ValueError:  # what it says may hold a part of the password
            raise SettingsError(
                f"--rq-url: {target.safe_url!r} is not allowed; it takes redis://HOST:PORT/NUMBER, rediss:// or unix://"
            ) from None
        password = self._client.connection_pool.connection_kwargs.get("password")
        self._password = password if isinstance(password, str) else None

    def collect(self) -> list[Reading]:
        """Jobs waiting in each queue.

        Raises:
            CollectorError: when Redis does not answer as it should.
        """
        try:
            queues = self._queues or self._listed()
            with self._client.pipeline(transaction=False) as pipe:
                for queue in queues:
                    # Text throughout; a name that was none on the server, or on the command line, comes back as it was.
                    pipe.llen((QUEUE_PREFIX + queue).encode("utf-8", "surrogateescape"))
                depths = pipe.execute()
        except (redis.RedisError, OSError, TypeError) as error:  # TypeError: an unknown option in the URL's query
            reason = without_secrets(str(error), self._password)
            raise CollectorError(f"{self._where} cannot be read: {reason}") from None
        return [
            Reading(JOBS_QUEUE_DEPTH, (SYSTEM, self.broker, queue), float(depth))
            for queue, depth in zip(queues, depths, strict=True)
        ]

    def _listed(self) -> tuple[str, ...]:
        keys = (_text(member) for member in self._client.smembers(QUEUES_KEY))
        return tuple(sorted(key[len(QUEUE_PREFIX) :] for key in keys if key.startswith(QUEUE_PREFIX)))

    def close(self) -> None:
        """Close the connection."""
        self._client.close()


def _text(member: object) -> str:
    return member.decode("utf-8", "surrogateescape") if isinstance(member, bytes) else str(member)


def collectors(options: CollectorOptions) -> Iterable[Collector]:
    """One collector an RQ Redis.

    Raises:
        SettingsError: for a URL that redis-py does not take, or queues without a URL.
    """
    if options.rq_queues and not options.rq_urls:
        raise SettingsError("--rq-queue needs --rq-url, which says where the queues are")
    return [RedisQueues(target, options.rq_queues, options.timeout) for target in options.rq_urls]
