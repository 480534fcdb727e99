"""A Redis that the user names: reached with a limit, never shown with its password, and left as it was."""

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
    """A client that gives up rather than hang."""
    return redis.Redis.from_url(url, socket_timeout=TIMEOUT_SECONDS, socket_connect_timeout=TIMEOUT_SECONDS)


def check(url: str) -> None:
    """Raise DemoError unless a server answers; the caller hides the password in its message."""
    try:
        with client(url) as connection:
            connection.ping()
    except (redis.RedisError, OSError) as error:
        raise DemoError(f"REDIS_URL={url} does not answer: {error}") from error
    except ValueError as error:  # it may quote a piece of a password that was cut at the wrong place
        raise DemoError(f"REDIS_URL={url} is not a valid Redis URL; it takes redis://, rediss:// or unix://") from error


def worker_key(name: str) -> str:
    """RQ's key of a worker, with the prefix of RQ_KEY_PREFIX where RQ has one."""
    return Worker.redis_worker_namespace_prefix + name


def purge(run: Run) -> None:
    """Delete every key of the run.

    Each key of its queues, jobs and workers holds the run's id. Two sets of RQ's are common to all, so only the run's
    members are removed.
    """
    if run.redis_url is None:
        return
    try:
        with client(run.redis_url) as connection:
            connection.srem(Queue.redis_queues_keys, Queue.redis_queue_namespace_prefix + run.rq_queue)
            connection.srem(REDIS_WORKER_KEYS, worker_key(run.rq_worker))
            # SCAN, not KEYS, which would stop a big server for everybody.
            keys = connection.scan_iter(match=f"*{run.id}*", count=BATCH)
            while batch := list(itertools.islice(keys, BATCH)):
                connection.delete(*batch)
    except redis.RedisError as error:
        raise DemoError(f"the keys that hold {run.id} could not be deleted from Redis: {error}") from error


def celery_url(url: str) -> str:
    """The URL as kombu spells it, which is another one for a socket."""
    if not url.startswith("unix://"):
        return url
    parts = urlsplit(url)
    query = "&".join(
        f"virtual_host={part[3:]}" if part.startswith("db=") else part for part in parts.query.split("&") if part
    )
    return f"redis+socket://{parts.netloc}{parts.path}" + (f"?{query}" if query else "")


def hide(text: str, url: str | None) -> str:
    """The text without the URL's passwords, as they are written and as they are meant."""
    # Not urlsplit: a password with a '/' or '#' left unquoted would be cut short and then shown.
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
