"""A connection to RQ's Redis from a URL: redis://, rediss:// (TLS), unix:// and sentinel://."""

from __future__ import annotations

import re
from urllib.parse import parse_qs, unquote, urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry
from redis.sentinel import Sentinel

from jobmetrics.collecting import Target
from jobmetrics.errors import SettingsError

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
