"""What reading any Celery broker has in common: kombu's connection, and one clear line for whatever goes wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from jobmetrics.celery.messages import SYSTEM
from jobmetrics.collecting import Reading, without_secrets
from jobmetrics.errors import CollectorError


class BrokerQueues:
    """Reads the queues of one broker. connection: kombu's, not connected yet; where: its address without secrets."""

    name = SYSTEM

    def __init__(self, broker: str, where: str, connection: Any, queues: Sequence[str]) -> None:
        self.broker = broker
        self._where = where
        self._connection = connection
        self._queues = tuple(dict.fromkeys(queues))
        self._channel: Any = None

    def collect(self) -> list[Reading]:
        """What the broker says now of the queues it knows.

        Raises:
            CollectorError: when it does not answer as it should.
        """
        try:
            return self._read()
        except Exception as error:  # noqa: BLE001 - kombu and the clients beneath raise dozens of unrelated classes
            reason = without_secrets(str(error) or type(error).__name__, self._password())
            self.close()
            raise CollectorError(f"{self._where} cannot be read: {reason}") from None

    def _read(self) -> list[Reading]:
        raise NotImplementedError

    def _connected(self) -> Any:
        """A channel of kombu's."""
        if self._channel is None:
            # Two tries without a pause: the second goes to the next host of a broker that has several.
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
        except Exception:  # noqa: BLE001, S110 - what is broken already may not close either
            pass
