"""Celery's queues on Redis, read through kombu's own client so that its options (prefix, priority steps) apply.

Only LLEN, HLEN, LINDEX and SMEMBERS are sent. A message is read, never taken.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from typing import Any

from jobmetrics.celery.broker_reading import BrokerQueues
from jobmetrics.celery.messages import SYSTEM, published_at
from jobmetrics.collecting import Reading
from jobmetrics.families import JOBS_QUEUE_DEPTH, JOBS_QUEUE_OLDEST, JOBS_QUEUE_UNACKNOWLEDGED

INTERNAL = ("celeryev", "_kombu")  # how the names of queues begin that hold no tasks
REPLIES = ".pidbox"  # and how they end


class RedisQueues(BrokerQueues):
    """Reads one Redis. exchange: whose bound queues are asked about besides those named; None for no others."""

    def __init__(
        self, broker: str, where: str, connection: Any, queues: Sequence[str], exchange: str | None = None
    ) -> None:
        super().__init__(broker, where, connection, queues)
        self._exchange = exchange
        self._found: tuple[str, ...] | None = None

    def _read(self) -> list[Reading]:
        channel = self._connected()
        if self._exchange is not None and self._found is None:
            self._found = self._bound(channel, channel.client.smembers(self._binding(channel)))
        queues = tuple(dict.fromkeys((*self._queues, *(self._found or ()))))
        # The lists of a queue, one a priority step, as kombu.transport.redis.Channel names them; first served first.
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
        lengths = {queue: [int(next(answers)) for _ in suffixes] for queue in queues}
        unacknowledged = int(next(answers))
        if self._exchange is not None:
            self._found = self._bound(channel, next(answers))
        return [
            Reading(JOBS_QUEUE_UNACKNOWLEDGED, (SYSTEM, self.broker), float(unacknowledged)),
            *(  # an empty queue is a missing key, hence 0
                Reading(JOBS_QUEUE_DEPTH, (SYSTEM, self.broker, queue), float(sum(each)))
                for queue, each in lengths.items()
            ),
            *self._oldest(channel, suffixes, lengths),
        ]

    def _oldest(self, channel: Any, suffixes: Sequence[str], lengths: dict[str, list[int]]) -> list[Reading]:
        """When the message that is next to run in each queue was published."""
        fronts = {
            queue: queue + next(suffix for suffix, length in zip(suffixes, each, strict=True) if length)
            for queue, each in lengths.items()
            if any(each)
        }
        if not fronts:
            return []
        messages = _ask(channel, [("lindex", key, -1) for key in fronts.values()])
        stamps = ((queue, _stamp(message)) for queue, message in zip(fronts, messages, strict=True))
        return [
            Reading(JOBS_QUEUE_OLDEST, (SYSTEM, self.broker, queue), stamp)
            for queue, stamp in stamps
            if stamp is not None
        ]

    def _binding(self, channel: Any) -> str:
        return str(channel.keyprefix_queue % (self._exchange,))

    @staticmethod
    def _bound(channel: Any, members: Iterable[Any]) -> tuple[str, ...]:
        """The queues among the members of a binding: routing key, pattern and queue with separators between."""
        texts = (member.decode(errors="replace") if isinstance(member, bytes) else str(member) for member in members)
        names = sorted({text.rpartition(channel.sep)[2] for text in texts})
        return tuple(name for name in names if name and not name.startswith(INTERNAL) and not name.endswith(REPLIES))


def _ask(channel: Any, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
    """The answers to these commands, in one round trip. Prefixes the keys of those that kombu's client does not."""
    client = channel.client
    prefix = getattr(client, "global_keyprefix", "")
    prefixed = getattr(client, "PREFIXED_SIMPLE_COMMANDS", ())
    with client.pipeline(transaction=False) as pipe:
        for command, key, *arguments in commands:
            pipe.execute_command(command.upper(), key if command.upper() in prefixed else f"{prefix}{key}", *arguments)
        answers: list[Any] = pipe.execute()
    return answers


def _stamp(message: Any) -> float | None:
    """When a message was published, if its producer said so."""
    try:
        headers = json.loads(message)["headers"]
    except (ValueError, TypeError, KeyError, RecursionError):  # no message, or gone meanwhile
        return None
    return published_at(headers)
