"""The user's Redis: requests have a timeout, the password is never shown, and the run's keys are deleted."""

from __future__ import annotations

import itertools
from urllib.parse import unquote, urlsplit

import redis
from rq import Queue, Worker
from rq.worker_registration import REDIS_WORKER_KEYS

from demo import DemoError
from demo.ledger import Run

TIMEOUT_SECONDS = 5.0
BATCH = 500


def client(url: str) -> redis.Redis:
    """A client with timeouts."""
    return redis.Redis.from_url(url, socket_timeout=TIMEOUT_SECONDS, socket_connect_timeout=TIMEOUT_SECONDS)


def check(url: str) -> None:
    """Raise DemoError unless a server answers; the caller hides the password in its message."""
    try:
        with client(url) as connection:
            connection.ping()
    except (redis.RedisError, OSError) as error:
        raise DemoError(f"REDIS_URL={url} does not answer: {error}") from error
    except ValueError as error:  # not quoted: it may contain a part of the password
        raise DemoError(f"REDIS_URL={url} is not a valid Redis URL; it takes redis://, rediss:// or unix://") from error


def worker_key(name: str) -> str:
    """RQ's key of a worker. From RQ 3 on, it begins with RQ_KEY_PREFIX."""
    return Worker.redis_worker_namespace_prefix + name


def purge(run: Run) -> None:
    """Delete every key of the run.

    Each key of its queues, jobs and workers contains the run's id. Two of RQ's sets are shared by all queues and
    workers of the server; only the run's members are removed from them.
    """
    if run.redis_url is None:
        return
    try:
        with client(run.redis_url) as connection:
            connection.srem(Queue.redis_queues_keys, Queue.redis_queue_namespace_prefix + run.rq_queue)
            connection.srem(REDIS_WORKER_KEYS, worker_key(run.rq_worker))
            # SCAN, because KEYS would block a large server for all its clients.
            keys = connection.scan_iter(match=f"*{run.id}*", count=BATCH)
            while batch := list(itertools.islice(keys, BATCH)):
                connection.delete(*batch)
    except redis.RedisError as error:
        raise DemoError(f"the keys that hold {run.id} could not be deleted from Redis: {error}") from error


def celery_url(url: str) -> str:
    """The URL in kombu's form, which differs for Unix sockets."""
    if not url.startswith("unix://"):
        return url
    parts = urlsplit(url)
    query = "&".join(
        f"virtual_host={part[3:]}" if part.startswith("db=") else part for part in parts.query.split("&") if part
    )
    return f"redis+socket://{parts.netloc}{parts.path}" + (f"?{query}" if query else "")


def hide(text: str, url: str | None) -> str:
    """The text without the URL's passwords, encoded and decoded."""
    # Not urlsplit: it cuts a password at a '/' or '#' that is not encoded, and the rest would be shown.
    rest = (url or "").partition("://")[2] or url or ""
    login = rest.rpartition("@")[0]
    written = {login.partition(":")[2] or login}
    written |= {
        word.removeprefix("password=") for word in rest.rpartition("?")[2].split("&") if word.startswith("password=")
    }
    secrets = (written | {unquote(word) for word in written}) - {""}
    for secret in sorted(secrets, key=len, reverse=True):
        text = text.replace(secret, "***")
    return text
