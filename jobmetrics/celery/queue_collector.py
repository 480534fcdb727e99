"""Collectors that read the depth and age of Celery's queues on Redis and RabbitMQ."""

from __future__ import annotations

import json
import logging
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from amqp.exceptions import ChannelError, NotFound
from redis.exceptions import ResponseError

from jobmetrics.celery import SYSTEM
from jobmetrics.celery.bindings import FIRST_SCANS, Bindings, holds_tasks
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

DEFAULT_QUEUE = "celery"  # Celery's default for task_default_queue

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
    It also reads the queues that the registry directory knows if the broker has them, and on Redis those that kombu has
    bound to an exchange.

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
    return [_collector(target, app, queues or (DEFAULT_QUEUE,), options) for target in targets]


def _collector(target: Target | None, app: Any, queues: Sequence[str], options: CollectorOptions) -> Collector:
    """Return the collector of one broker.

    Args:
        target: None for the broker that the application is configured with.
        app: the application; None without one.
        queues: names of queues that are shown even if the broker does not have them.
        options: the options of the collectors.
    """
    timeout = options.timeout
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
        return AmqpQueues(broker, where, connection, queues, options.max_queues, options.recorded_queues)
    if driver != REDIS:
        return _unreadable(broker, where, driver)
    if "://" not in str(connection.hostname) and not _DATABASE.match(str(connection.virtual_host).lstrip("/")):
        raise SettingsError(f"--celery-broker: {where!r} is not a valid broker URL: a Redis database is a number")
    return RedisQueues(broker, where, connection, queues, options.max_queues, options.recorded_queues)


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

    Args:
        broker: the label `broker`.
        where: the broker's address without secrets.
        connection: a kombu Connection that is not connected yet.
        queues: names of queues.
        max_queues: the queues beyond this number share one series.
        recorded: returns the names of the queues that the registry directory knows for a job system. Those that the
            broker has are read as well.
    """

    name = SYSTEM

    def __init__(
        self,
        broker: str,
        where: str,
        connection: Any,
        queues: Sequence[str],
        max_queues: int,
        recorded: Callable[[str], Sequence[str]],
    ) -> None:
        self.broker = broker
        self._where = where
        self._connection = connection
        self._queues = tuple(dict.fromkeys(queues))
        self._max_queues = max_queues
        self._recorded = recorded
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

    def _further(self) -> list[str]:
        """Return the names that the registry directory knows, without those that the options name."""
        named = set(self._queues)
        return [queue for queue in self._recorded(SYSTEM) if queue not in named and holds_tasks(queue)]

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


ASKED_AGAIN = 10  # missing queues of the registry directory in one reading; each costs a new channel


class AmqpQueues(BrokerQueues):
    """Reads one virtual host. Depths count ready messages; AMQP reports neither unacknowledged messages nor ages."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._missing: set[str] = set()
        self._unknown: dict[str, None] = {}  # names in the registry directory without a queue, last asked for last

    def _read(self) -> list[Reading]:
        found = {queue: self._declared(queue) for queue in self._queues}
        further = dict.fromkeys(self._further())
        self._unknown = {queue: None for queue in self._unknown if queue in further}
        again = list(self._unknown)[:ASKED_AGAIN]
        for queue in [*(queue for queue in further if queue not in self._unknown), *again]:
            self._unknown.pop(queue, None)
            found[queue] = self._declared(queue, is_named=False)
            if found[queue] is None:
                self._unknown[queue] = None
        known = {queue: each for queue, each in found.items() if each is not None}
        own, rest = capped(tuple(known), self._max_queues)
        readings = []
        for queue in own:
            labels = (SYSTEM, self.broker, queue)
            readings.append(Reading(JOBS_QUEUE_DEPTH, labels, float(known[queue].message_count)))
            readings.append(Reading(JOBS_QUEUE_CONSUMERS, labels, float(known[queue].consumer_count)))
        if rest:
            depth = sum(known[queue].message_count for queue in rest)
            readings.append(Reading(JOBS_QUEUE_DEPTH, (SYSTEM, self.broker, OVERFLOW), float(depth)))
        return readings

    def _declared(self, queue: str, *, is_named: bool = True) -> Any:
        """Return the broker's counts of a queue; None if it has no such queue. The queue is not created.

        is_named: the options name the queue. Other queues may also be unreadable, such as another connection's.
        """
        try:
            found = self._connected().queue_declare(queue=queue, passive=True)
        except ChannelError as error:
            if is_named and not isinstance(error, NotFound):
                raise
            self._channel = None  # the broker closes it with this answer
            if is_named:
                self._log_missing(queue)
            return None
        self._missing.discard(queue)
        return found

    def _log_missing(self, queue: str) -> None:
        if queue not in self._missing:
            self._missing.add(queue)
            logger.info("jobmetrics: %s has no queue %r yet; nothing is shown for it", self._where, queue)


LARGEST_MESSAGE = 64 * 1024  # bytes; the timestamp of a longer message is not read
_CHUNK = 10_000  # commands in one pipeline, which bounds its memory

# Returns the last message of a list if it is short. No Redis command returns a part of it or its length.
_FRONT = f"local m = redis.call('LINDEX', KEYS[1], -1) if m and #m <= {LARGEST_MESSAGE} then return m end return false"


class RedisQueues(BrokerQueues):
    """Reads one Redis, with the queues that kombu has bound to an exchange."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self._bindings = Bindings(self._where, self._max_queues)
        self._filled: set[str] = set()  # queues of the registry directory that have held messages here
        self._wrong_types = WrongTypes(self._where)
        self._no_scripts = False

    def _read(self) -> list[Reading]:
        channel, bindings = self._connected(), self._bindings
        if bindings.is_new:
            self._find_bindings(channel)
        here, further = dict.fromkeys((*self._queues, *bindings.queues)), self._further()
        queues = tuple(dict.fromkeys((*here, *further)))
        # A queue has one list for each priority step, named as in kombu.transport.redis.Channel. Served in this order.
        suffixes = tuple(dict.fromkeys(f"{channel.sep}{step}" if step else "" for step in channel.priority_steps))
        answers = iter(
            _ask(
                channel,
                [
                    *(("llen", queue + suffix) for queue in queues for suffix in suffixes),
                    ("hlen", channel.unacked_key),
                    *bindings.commands(channel),
                ],
            )
        )
        found = self._wrong_types.leave_out({queue: [next(answers) for _ in suffixes] for queue in queues})
        lengths = {queue: [int(one) for one in each] for queue, each in found.items()}
        unacknowledged = next(answers)
        bindings.take(channel, list(answers))
        # An empty queue has no key. A name without a binding may belong to another broker.
        self._filled = {queue for queue in further if queue in self._filled or any(lengths.get(queue, ()))}
        lengths = {queue: each for queue, each in lengths.items() if queue in here or queue in self._filled}
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

    def _find_bindings(self, channel: Any) -> None:
        """Scan more keys than in later readings."""
        for _ in range(FIRST_SCANS):
            self._bindings.take(channel, _ask(channel, self._bindings.commands(channel)))
            if self._bindings.has_scanned_all:
                break
        self._bindings.take(channel, _ask(channel, self._bindings.commands(channel)))  # of those found last


def _ask(channel: Any, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
    """Send these commands, in one round trip for each 10,000.

    kombu's client adds the key prefix to some commands; this adds it to the others. SCAN has no key.

    Returns:
        The answers. A WRONGTYPE error and any error of SCAN are returned as one of them.

    Raises:
        ResponseError: when Redis refuses another command for another reason.
    """
    client = channel.client
    prefix = getattr(client, "global_keyprefix", "")
    prefixed = getattr(client, "PREFIXED_SIMPLE_COMMANDS", ())
    answers: list[Any] = []
    for start in range(0, len(commands), _CHUNK):
        with client.pipeline(transaction=False) as pipe:
            for command, key, *rest in commands[start : start + _CHUNK]:
                if command == "scan":
                    pipe.execute_command("SCAN", key, *rest)
                    continue
                full = key if command.upper() in prefixed else f"{prefix}{key}"
                pipe.execute_command(command.upper(), *(part for text in rest for part in (text, 1)), full)
            answers += pipe.execute(raise_on_error=False)
    for (command, *_), answer in zip(commands, answers, strict=True):
        if isinstance(answer, Exception) and command != "scan" and not str(answer).startswith("WRONGTYPE"):
            raise answer
    return answers


def _published_at(message: Any) -> float | None:
    """Return when a message was published, in epoch seconds; None without a producer's timestamp."""
    try:
        headers = json.loads(message)["headers"]
    except (ValueError, TypeError, KeyError, RecursionError):  # not a task's message, or it is gone
        return None
    return published_at(headers)
