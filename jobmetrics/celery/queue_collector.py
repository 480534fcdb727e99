"""Collectors that read the depth and age of Celery's queues on Redis and RabbitMQ."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from amqp.exceptions import NotFound
from redis.exceptions import ResponseError

from jobmetrics.celery import SYSTEM
from jobmetrics.celery.messages import published_at
from jobmetrics.collector_api import (
    DEFAULT_NAME,
    Collector,
    CollectorOptions,
    Reading,
    Target,
    WrongTypes,
    capped,
    without_secrets,
)
from jobmetrics.errors import CollectorError, SettingsError
from jobmetrics.families import (
    JOBS_QUEUE_CONSUMERS,
    JOBS_QUEUE_DEPTH,
    JOBS_QUEUE_OLDEST,
    JOBS_QUEUE_UNACKNOWLEDGED,
    OVERFLOW,
)

DEFAULT_QUEUE = "celery"  # Celery's default for task_default_queue, and the exchange that its queues are bound to

REDIS = "redis"  # kombu's driver_type of redis, rediss and sentinel
AMQP = "amqp"  # of amqp, amqps, pyamqp and librabbitmq

_READ = ("kombu.transport.redis:", "kombu.transport.pyamqp:", "kombu.transport.librabbitmq:")

_DATABASE = re.compile(r"[0-9]*\Z")


class Unreadable:
    """A broker that cannot be read. Its readings are absent, and `collect` raises the reason."""

    name = SYSTEM

    def __init__(self, broker: str, reason: str) -> None:
        self.broker = broker
        self._reason = reason

    def collect(self) -> list[Reading]:
        """Raise the reason.

        Raises:
            CollectorError: always.
        """
        raise CollectorError(self._reason)

    def close(self) -> None:
        """Do nothing: there is no connection."""


def collectors(options: CollectorOptions) -> Iterable[Collector]:
    """Return one collector for each Celery broker.

    Each reads the queues that the options name, else those that the application declares, else Celery's default queue.
    On Redis it then also reads the queues that are bound to the default exchange.

    Raises:
        SettingsError: for a URL that kombu does not accept, an application that cannot be loaded, or queues
            without a broker.
    """
    brokers: Sequence[Target] = options.get("celery_brokers", ())
    name: str | None = options.get("celery_app")
    if not brokers and not name:
        raise SettingsError("--celery-queue needs --celery-broker or --celery-app, which name the broker")
    app = _load(name) if name else None
    queues = options.get("celery_queues") or (tuple(app.amqp.queues) if app else ())
    targets: Iterable[Target | None] = brokers or (None,)
    return [_collector(target, app, queues, options.timeout, options.max_queues) for target in targets]


def _collector(target: Target | None, app: Any, queues: Sequence[str], timeout: float, most: int) -> Collector:
    """Return the collector of one broker.

    Args:
        target: None for the broker that the application is configured with.
        app: the application; None without one.
        queues: names of queues; empty for the default queue and those bound to the default exchange.
        timeout: seconds.
        most: the number of queues that get separate series.
    """
    broker = target.name if target else DEFAULT_NAME
    shown = target.safe_url if target else "the application's broker URL"
    transport = _transport(target, app)
    if not _may_be_read(transport):
        return _unreadable(broker, shown, transport)
    try:
        connection = _connection(target, app, timeout)
        driver = connection.get_transport_cls().driver_type
        connection.transport_options = {**(connection.transport_options or {}), **_bounds(driver, timeout)}
    except KeyError:
        raise SettingsError(f"--celery-broker: {shown!r} has a scheme that kombu does not know") from None
    except ImportError as error:
        needed = f"it needs the package {error.name}" if error.name else without_secrets(str(error))
        return Unreadable(broker, f"{shown} cannot be read: {needed}")
    except (ValueError, TypeError):  # their messages may contain a part of the password
        raise SettingsError(
            f"--celery-broker: {shown!r} is not a valid broker URL: check host, port and query"
        ) from None
    where = target.safe_url if target else _shown(connection)
    if driver == AMQP:
        return AmqpQueues(broker, where, connection, queues or (DEFAULT_QUEUE,), most)
    if driver != REDIS:
        return _unreadable(broker, where, driver)
    if "://" not in str(connection.hostname) and not _DATABASE.match(str(connection.virtual_host).lstrip("/")):
        raise SettingsError(f"--celery-broker: {where!r} is not a valid broker URL: a Redis database is a number")

    return RedisQueues(broker, where, connection, queues or (DEFAULT_QUEUE,), most, None if queues else DEFAULT_QUEUE)


def _transport(target: Target | None, app: Any) -> str:
    """Return kombu's name of a broker URL's transport: the scheme up to a +."""
    if target is None:
        url = app.conf.broker_read_url or app.conf.broker_url or ""
        target = Target(DEFAULT_NAME, str(url if isinstance(url, str) else next(iter(url), "")))
    return target.scheme.partition("+")[0]


def _may_be_read(transport: str) -> bool:
    """Return whether the transport can be read, or is unknown to kombu.

    This is checked before the transport is loaded, because it may need a package that is not installed.
    """
    from kombu.transport import TRANSPORT_ALIASES

    path = TRANSPORT_ALIASES.get(transport)
    return path is None or path.startswith(_READ)


def _unreadable(broker: str, where: str, transport: str) -> Unreadable:
    return Unreadable(
        broker, f"{where} cannot be read: queues are read on Redis and RabbitMQ only, not on {transport.lower()}"
    )


def _bounds(driver: str, timeout: float) -> dict[str, float]:
    """Return the transport options that limit the wait for a broker that does not answer."""
    if driver == AMQP:
        return {"read_timeout": timeout, "write_timeout": timeout}
    if driver == REDIS:
        return {"socket_timeout": timeout, "socket_connect_timeout": timeout / 2}  # two attempts
    return {}


def _connection(target: Target | None, app: Any, timeout: float) -> Any:
    """Return a kombu Connection that is not connected yet, with the application's options if there is one."""
    url = target.url if target else None
    if app is not None:
        return app.connection_for_read(url, connect_timeout=timeout)
    from kombu import Connection

    options = {}
    if url is not None and url.startswith("sentinel:"):
        # kombu accepts the master's name only as an option, and no query in these URLs.
        options = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items() if name == "master_name"}
        url = ";".join(part.partition("?")[0] for part in url.split(";"))
    return Connection(url, connect_timeout=timeout, transport_options=options)


def _shown(connection: Any) -> str:
    """Return the address of the application's broker without secrets."""
    return Target(DEFAULT_NAME, connection.as_uri(include_password=False)).safe_url


def _load(name: str) -> Any:
    """Load the Celery application that `--celery-app` names, in the same way as `celery -A`."""
    from celery.app.utils import find_app

    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # as the celery command does
    try:
        app = find_app(name)
        app.amqp.queues  # noqa: B018 - loads the configuration, which may be invalid
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the application may raise anything
        reason = without_secrets(f"{type(error).__name__}: {error}")
        raise SettingsError(f"--celery-app {name!r} cannot be loaded: {reason}") from None
    return app


class BrokerQueues:
    """Reads the queues of one broker.

    connection: a kombu Connection that is not connected yet. where: the broker's address without secrets.
    """

    name = SYSTEM

    def __init__(self, broker: str, where: str, connection: Any, queues: Sequence[str]) -> None:
        self.broker = broker
        self._where = where
        self._connection = connection
        self._queues = tuple(dict.fromkeys(queues))
        self._channel: Any = None

    def collect(self) -> list[Reading]:
        """Return the broker's current readings of the queues.

        Raises:
            CollectorError: when the broker cannot be reached or refuses a command.
        """
        try:
            return self._read()
        except Exception as error:  # noqa: BLE001 - kombu and its clients raise many unrelated classes
            reason = without_secrets(str(error) or type(error).__name__, self._password())
            self.close()
            raise CollectorError(f"{self._where} cannot be read: {reason}") from None

    def _read(self) -> list[Reading]:
        raise NotImplementedError

    def _connected(self) -> Any:
        """Return the open kombu channel; connect if there is none."""
        if self._channel is None:
            # Two attempts without a pause: the second tries the next host if the broker has several.
            self._connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0, interval_max=0)
            self._channel = self._connection.channel()
        return self._channel

    def _password(self) -> str | None:
        password = self._connection.password
        return password if isinstance(password, str) else None

    def close(self) -> None:
        """Close the connection; the next reading opens it again."""
        self._channel = None
        try:
            self._connection.close()
        except Exception:  # noqa: BLE001, S110 - a broken connection may fail to close
            pass


logger = logging.getLogger("jobmetrics")


class AmqpQueues(BrokerQueues):
    """Reads one virtual host. Depths count ready messages; AMQP reports neither unacknowledged messages nor ages."""

    def __init__(self, broker: str, where: str, connection: Any, queues: Sequence[str], max_queues: int) -> None:
        super().__init__(broker, where, connection, queues)
        _, rest = capped(self._queues, max_queues)
        self._rest = frozenset(rest)
        self._missing: set[str] = set()

    def _read(self) -> list[Reading]:
        readings = []
        others = None  # messages in the queues that share one series
        for queue in self._queues:
            try:
                found = self._connected().queue_declare(queue=queue, passive=True)
            except NotFound:
                self._channel = None  # the broker closes it with this answer
                self._log_missing(queue)
                continue
            self._missing.discard(queue)
            if queue in self._rest:
                others = (others or 0.0) + float(found.message_count)
                continue
            labels = (SYSTEM, self.broker, queue)
            readings.append(Reading(JOBS_QUEUE_DEPTH, labels, float(found.message_count)))
            readings.append(Reading(JOBS_QUEUE_CONSUMERS, labels, float(found.consumer_count)))
        if others is not None:
            readings.append(Reading(JOBS_QUEUE_DEPTH, (SYSTEM, self.broker, OVERFLOW), others))
        return readings

    def _log_missing(self, queue: str) -> None:
        if queue not in self._missing:
            self._missing.add(queue)
            logger.info("jobmetrics: %s has no queue %r yet; nothing is shown for it", self._where, queue)


INTERNAL = ("celeryev", "_kombu")  # prefixes of queues that hold no tasks
REPLIES = ".pidbox"  # the suffix of others

LARGEST_MESSAGE = 64 * 1024  # bytes; the timestamp of a longer message is not read
_CHUNK = 10_000  # commands in one pipeline, which bounds its memory

# Returns the last message of a list if it is short. No Redis command returns a part of it or its length.
_FRONT = f"local m = redis.call('LINDEX', KEYS[1], -1) if m and #m <= {LARGEST_MESSAGE} then return m end return false"


class RedisQueues(BrokerQueues):
    """Reads one Redis.

    max_queues: the queues beyond this number share one series. exchange: the queues bound to it are read as well;
    None for no other queues.
    """

    def __init__(
        self,
        broker: str,
        where: str,
        connection: Any,
        queues: Sequence[str],
        max_queues: int,
        exchange: str | None = None,
    ) -> None:
        super().__init__(broker, where, connection, queues)
        self._max_queues = max_queues
        self._exchange = exchange
        self._found: tuple[str, ...] | None = None
        self._wrong_types = WrongTypes(where)
        self._no_scripts = False

    def _read(self) -> list[Reading]:
        channel = self._connected()
        if self._exchange is not None and self._found is None:
            (members,) = _ask(channel, [("smembers", self._binding(channel))])
            self._found = () if isinstance(members, Exception) else self._bound(channel, members)
        queues = tuple(dict.fromkeys((*self._queues, *(self._found or ()))))
        # A queue has one list for each priority step, named as in kombu.transport.redis.Channel. Served in this order.
        suffixes = tuple(dict.fromkeys(f"{channel.sep}{step}" if step else "" for step in channel.priority_steps))
        answers = iter(
            _ask(
                channel,
                [
                    *(("llen", queue + suffix) for queue in queues for suffix in suffixes),
                    ("hlen", channel.unacked_key),
                    *([("smembers", self._binding(channel))] if self._exchange is not None else []),
                ],
            )
        )
        found = self._wrong_types.leave_out({queue: [next(answers) for _ in suffixes] for queue in queues})
        lengths = {queue: [int(one) for one in each] for queue, each in found.items()}
        unacknowledged = next(answers)
        if self._exchange is not None:
            members = next(answers)
            self._found = () if isinstance(members, Exception) else self._bound(channel, members)
        own, rest = capped(tuple(lengths), self._max_queues)
        depths = {queue: sum(lengths[queue]) for queue in own}
        if rest:
            depths[OVERFLOW] = sum(sum(lengths[queue]) for queue in rest)
        return [
            *(
                []
                if isinstance(unacknowledged, Exception)
                else [Reading(JOBS_QUEUE_UNACKNOWLEDGED, (SYSTEM, self.broker), float(unacknowledged))]
            ),
            *(  # an empty queue has no key, and its length is 0
                Reading(JOBS_QUEUE_DEPTH, (SYSTEM, self.broker, queue), float(depth)) for queue, depth in depths.items()
            ),
            *self._oldest(channel, suffixes, {queue: lengths[queue] for queue in own}),
        ]

    def _oldest(self, channel: Any, suffixes: Sequence[str], lengths: dict[str, list[int]]) -> list[Reading]:
        """Return when the next message of each queue was published; no reading for a long message."""
        fronts = {
            queue: queue + next(suffix for suffix, length in zip(suffixes, each, strict=True) if length)
            for queue, each in lengths.items()
            if any(each)
        }
        if not fronts:
            return []
        try:
            messages = _ask(channel, [("eval", key, _FRONT) for key in fronts.values()])
        except ResponseError as error:  # for example, the user may not run scripts
            if not self._no_scripts:
                self._no_scripts = True
                logger.warning("jobmetrics: %s: the age of queues cannot be read: %s", self._where, error)
            return []
        stamps = ((queue, _published_at(message)) for queue, message in zip(fronts, messages, strict=True))
        return [
            Reading(JOBS_QUEUE_OLDEST, (SYSTEM, self.broker, queue), stamp)
            for queue, stamp in stamps
            if stamp is not None
        ]

    def _binding(self, channel: Any) -> str:
        return str(channel.keyprefix_queue % (self._exchange,))

    @staticmethod
    def _bound(channel: Any, members: Iterable[Any]) -> tuple[str, ...]:
        """Return the queues of a binding. A member is routing key, pattern and queue, joined by separators."""
        texts = (member.decode(errors="replace") if isinstance(member, bytes) else str(member) for member in members)
        names = sorted({text.rpartition(channel.sep)[2] for text in texts})
        return tuple(name for name in names if name and not name.startswith(INTERNAL) and not name.endswith(REPLIES))


def _ask(channel: Any, commands: Sequence[tuple[str, ...]]) -> list[Any]:
    """Send these commands, in one round trip for each 10,000.

    kombu's client adds the key prefix to some commands; this adds it to the others.

    Returns:
        The answers. A WRONGTYPE error is returned as one of them.

    Raises:
        ResponseError: when Redis refuses a command for another reason.
    """
    client = channel.client
    prefix = getattr(client, "global_keyprefix", "")
    prefixed = getattr(client, "PREFIXED_SIMPLE_COMMANDS", ())
    answers: list[Any] = []
    for start in range(0, len(commands), _CHUNK):
        with client.pipeline(transaction=False) as pipe:
            for command, key, *script in commands[start : start + _CHUNK]:
                full = key if command.upper() in prefixed else f"{prefix}{key}"
                pipe.execute_command(command.upper(), *(part for text in script for part in (text, 1)), full)
            answers += pipe.execute(raise_on_error=False)
    for answer in answers:
        if isinstance(answer, Exception) and not str(answer).startswith("WRONGTYPE"):
            raise answer
    return answers


def _published_at(message: Any) -> float | None:
    """Return when a message was published, in epoch seconds; None without a producer's timestamp."""
    try:
        headers = json.loads(message)["headers"]
    except (ValueError, TypeError, KeyError, RecursionError):  # not a task's message, or it is gone
        return None
    return published_at(headers)
