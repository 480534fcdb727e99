"""Clearing a Redis that belongs to others: the keys of this run, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator

from redis import RedisError

from jobmetrics.demo.config import DemoConfig
from jobmetrics.demo.errors import DemoError
from jobmetrics.demo.redis_source import client

BATCH = 500


def purge(config: DemoConfig) -> None:
    """Delete every key of the run.

    Queues, jobs and workers are named so that each key of theirs holds the run's id; two sets of RQ's
    are common to all, so only their members of this run are taken out.
    """
    if config.redis_url is None:
        return
    try:
        with client(config.redis_url) as connection:
            connection.srem("rq:queues", f"rq:queue:{config.rq_queue}")
            connection.srem("rq:workers", f"rq:worker:{config.rq_worker}")
            # SCAN, not KEYS, which would stop a big server for everybody.
            for keys in _batches(connection.scan_iter(match=f"*{config.run}*", count=BATCH)):
                connection.delete(*keys)
    except RedisError as error:
        raise DemoError(f"the keys that hold {config.run} could not be cleared from Redis: {error}") from error


def _batches(keys: Iterator[bytes]) -> Iterator[list[bytes]]:
    batch: list[bytes] = []
    for key in keys:
        batch.append(key)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
