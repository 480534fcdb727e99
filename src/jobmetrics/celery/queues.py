"""Queue depth of Celery, read through kombu's own client so that its options (prefix, priority steps) apply."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from jobmetrics.collecting import DEFAULT_NAME, Collector, CollectorOptions, Reading, Target, without_secrets
from jobmetrics.errors import CollectorError, SettingsError
from jobmetrics.families import JOBS_QUEUE_DEPTH

SYSTEM = "celery"
DEFAULT_QUEUE = "celery"  # Celery's own task_default_queue

REDIS = "redis"  # kombu's driver_type of redis, rediss and sentinel

_DATABASE = re.compile(r"[0-9]*\Z")


class RedisQueues:
    """Reads the queues of one Celery broker on Redis. connection: kombu's, not connected yet."""

    name = SYSTEM

    def __init__(self, broker: str, where: str, connection: Any, queues: Sequence[str]) -> None:
        self.broker = broker
        self._where = where
        self._connection = connection
        self._queues = tuple(dict.fromkeys(queues))
        self._channel: Any = None

    def collect(self) -> list[Reading]:
        """Jobs waiting in each queue, all priorities together. An empty queue is a missing key, hence 0.

        Raises:
            CollectorError: when Redis does not answer as it should.
        """
        try:
            depths = self._depths()
        except Exception as error:  # noqa: BLE001 - kombu and redis-py raise a dozen unrelated classes
            reason = without_secrets(str(error) or type(error).__name__, self._password())
            self.close()
            raise CollectorError(f"{self._where} cannot be read: {reason}") from None
        return [
            Reading(JOBS_QUEUE_DEPTH, (SYSTEM, self.broker, queue), float(depth)) for queue, depth in depths.items()
        ]

    def _depths(self) -> dict[str, int]:
        if self._channel is None:
            # Two tries without a pause: the second goes to the next host of a broker that has several.
            self._connection.ensure_connection(max_retries=1, interval_start=0, interval_step=0, interval_max=0)
            self._channel = self._connection.channel()
        channel = self._channel
        # The lists of a queue, one a priority step, as kombu.transport.redis.Channel names them.
        suffixes = dict.fromkeys(f"{channel.sep}{step}" if step else "" for step in channel.priority_steps)
        with channel.client.pipeline(transaction=False) as pipe:
            for queue in self._queues:
                for suffix in suffixes:
                    pipe.llen(queue + suffix)
            lengths = iter(pipe.execute())
        return {queue: sum(next(lengths) for _ in suffixes) for queue in self._queues}

    def _password(self) -> str | None:
        password = self._connection.password
        return password if isinstance(password, str) else None

    def close(self) -> None:
        """Close the connection; the next reading opens it again."""
        self._channel = None
        try:
            self._connection.close()
        except Exception:  # noqa: BLE001, S110 - what is broken already may not close either
            pass


class Unreadable:
    """A broker whose queues cannot be read: its readings are absent, for a reason that is told."""

    name = SYSTEM

    def __init__(self, broker: str, reason: str) -> None:
        self.broker = broker
        self._reason = reason

    def collect(self) -> list[Reading]:
        """Raises CollectorError, always."""
        raise CollectorError(self._reason)

    def close(self) -> None:
        """Nothing is open."""


def collectors(options: CollectorOptions) -> Iterable[Collector]:
    """One collector a Celery broker.

    The queues are the ones named, else the ones the application declares, else Celery's default one.

    Raises:
        SettingsError: for a URL that kombu does not take, an application that cannot be loaded, or queues
            without a broker.
    """
    if not options.celery_brokers and not options.celery_app:
        raise SettingsError("--celery-queue needs --celery-broker or --celery-app, which say where the queues are")
    app = _load(options.celery_app) if options.celery_app else None
    queues = options.celery_queues or (tuple(app.amqp.queues) if app else ()) or (DEFAULT_QUEUE,)
    targets: Iterable[Target | None] = options.celery_brokers or (None,)
    return [_collector(target, app, queues, options.timeout) for target in targets]


def _collector(target: Target | None, app: Any, queues: Sequence[str], timeout: float) -> Collector:
    """target: None for the broker that the application is configured with."""
    broker = target.name if target else DEFAULT_NAME
    shown = target.safe_url if target else "the application's broker URL"
    try:
        connection = _connection(target, app, timeout)
        driver = connection.get_transport_cls().driver_type
    except KeyError:
        raise SettingsError(f"--celery-broker: {shown!r} has a scheme that kombu does not know") from None
    except ImportError as error:
        return Unreadable(broker, f"{shown} cannot be read: {without_secrets(str(error))}")
    except (ValueError, TypeError):  # what these say may hold a part of the password
        raise SettingsError(f"--celery-broker: {shown!r} is no broker URL: its host, port or query is wrong") from None
    where = target.safe_url if target else _shown(connection)
    if driver != REDIS:
        return Unreadable(broker, f"{where} cannot be read: queues are read on Redis only, not on {driver}")
    if "://" not in str(connection.hostname) and not _DATABASE.match(str(connection.virtual_host).lstrip("/")):
        raise SettingsError(f"--celery-broker: {where!r} is no broker URL: the database of a Redis is a number")
    return RedisQueues(broker, where, connection, queues)


def _connection(target: Target | None, app: Any, timeout: float) -> Any:
    """A connection of kombu's, with the application's options where there is one. Nothing is connected."""
    bounded = {"socket_timeout": timeout, "socket_connect_timeout": timeout / 2}  # connecting is tried twice
    url = target.url if target else None
    if app is not None:
        return app.connection_for_read(url, connect_timeout=timeout, transport_options=bounded)
    from kombu import Connection

    return Connection(url, connect_timeout=timeout, transport_options=bounded)


def _shown(connection: Any) -> str:
    """The address of the application's broker."""
    return Target(DEFAULT_NAME, connection.as_uri(include_password=False)).safe_url


def _load(name: str) -> Any:
    """The Celery application that `--celery-app` names, found as Celery's own -A finds it."""
    from celery.app.utils import find_app

    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)  # as the celery command does
    try:
        app = find_app(name)
        app.amqp.queues  # noqa: B018 - reads the configuration, which may be broken too
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the application is anybody's code
        reason = without_secrets(f"{type(error).__name__}: {error}")
        raise SettingsError(f"--celery-app {name!r} cannot be loaded: {reason}") from None
    return app
