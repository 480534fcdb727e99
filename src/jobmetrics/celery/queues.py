"""Which Celery brokers and queues the exporter reads, and what reads them."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from jobmetrics.celery.messages import SYSTEM
from jobmetrics.collecting import DEFAULT_NAME, Collector, CollectorOptions, Reading, Target, without_secrets
from jobmetrics.errors import CollectorError, SettingsError

DEFAULT_QUEUE = "celery"  # Celery's own task_default_queue, and the exchange that queues are bound to

REDIS = "redis"  # kombu's driver_type of redis, rediss and sentinel
AMQP = "amqp"  # of amqp, amqps, pyamqp and librabbitmq

_READ = ("kombu.transport.redis:", "kombu.transport.pyamqp:", "kombu.transport.librabbitmq:")

_DATABASE = re.compile(r"[0-9]*\Z")


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

    The queues are the ones named, else the ones the application declares, else Celery's default one and, on Redis,
    those bound to the exchange of that name.

    Raises:
        SettingsError: for a URL that kombu does not take, an application that cannot be loaded, or queues
            without a broker.
    """
    brokers: Sequence[Target] = options.get("celery_brokers", ())
    name: str | None = options.get("celery_app")
    if not brokers and not name:
        raise SettingsError("--celery-queue needs --celery-broker or --celery-app, which say where the queues are")
    app = _load(name) if name else None
    queues = options.get("celery_queues") or (tuple(app.amqp.queues) if app else ())
    targets: Iterable[Target | None] = brokers or (None,)
    return [_collector(target, app, queues, options.timeout, options.max_queues) for target in targets]


def _collector(target: Target | None, app: Any, queues: Sequence[str], timeout: float, most: int) -> Collector:
    """target: None for the broker that the application is configured with. queues: none for what can be found.
    most: how many of them have series of their own."""
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
    except (ValueError, TypeError):  # what these say may hold a part of the password
        raise SettingsError(f"--celery-broker: {shown!r} is no broker URL: its host, port or query is wrong") from None
    where = target.safe_url if target else _shown(connection)
    if driver == AMQP:
        from jobmetrics.celery.amqp_queues import AmqpQueues

        return AmqpQueues(broker, where, connection, queues or (DEFAULT_QUEUE,), most)
    if driver != REDIS:
        return _unreadable(broker, where, driver)
    if "://" not in str(connection.hostname) and not _DATABASE.match(str(connection.virtual_host).lstrip("/")):
        raise SettingsError(f"--celery-broker: {where!r} is no broker URL: the database of a Redis is a number")
    from jobmetrics.celery.redis_queues import RedisQueues

    return RedisQueues(broker, where, connection, queues or (DEFAULT_QUEUE,), most, None if queues else DEFAULT_QUEUE)


def _transport(target: Target | None, app: Any) -> str:
    """What kombu calls the transport of a broker URL: its scheme, up to a +."""
    if target is None:
        url = app.conf.broker_read_url or app.conf.broker_url or ""
        target = Target(DEFAULT_NAME, str(url if isinstance(url, str) else next(iter(url), "")))
    return target.scheme.partition("+")[0]


def _may_be_read(transport: str) -> bool:
    """Whether queues of kombu's transport of this name are read, or the name is not one of kombu's.

    Asked before the transport is loaded: it may need a package that is not installed here.
    """
    from kombu.transport import TRANSPORT_ALIASES

    path = TRANSPORT_ALIASES.get(transport)
    return path is None or path.startswith(_READ)


def _unreadable(broker: str, where: str, transport: str) -> Unreadable:
    return Unreadable(
        broker, f"{where} cannot be read: queues are read on Redis and RabbitMQ only, not on {transport.lower()}"
    )


def _bounds(driver: str, timeout: float) -> dict[str, float]:
    """The transport options that keep a broker that does not answer from holding us."""
    if driver == AMQP:
        return {"read_timeout": timeout, "write_timeout": timeout}
    if driver == REDIS:
        return {"socket_timeout": timeout, "socket_connect_timeout": timeout / 2}  # connecting is tried twice
    return {}


def _connection(target: Target | None, app: Any, timeout: float) -> Any:
    """A connection of kombu's, with the application's options where there is one. Nothing is connected."""
    url = target.url if target else None
    if app is not None:
        return app.connection_for_read(url, connect_timeout=timeout)
    from kombu import Connection

    options = {}
    if url is not None and url.startswith("sentinel:"):
        # Kombu takes the master's name from its options only, and no query in these URLs.
        options = {name: values[0] for name, values in parse_qs(urlsplit(url).query).items() if name == "master_name"}
        url = ";".join(part.partition("?")[0] for part in url.split(";"))
    return Connection(url, connect_timeout=timeout, transport_options=options)


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
