"""Celery's queues on Redis, read through kombu's own client so that its options (prefix, priority steps) apply.

Only LLEN, HLEN, SMEMBERS and a script that reads with LINDEX are sent. A message is read, never taken, and only if it
is short.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from typing import Any

from redis.exceptions import ResponseError

from jobmetrics.celery.broker_reading import BrokerQueues
from jobmetrics.celery.messages import SYSTEM, published_at
from jobmetrics.collecting import Reading, capped
from jobmetrics.families import JOBS_QUEUE_DEPTH, JOBS_QUEUE_OLDEST, JOBS_QUEUE_UNACKNOWLEDGED, OVERFLOW

logger = logging.getLogger("jobmetrics")

INTERNAL = ("celeryev", "_kombu")  # how the names of queues begin that hold no tasks
REPLIES = ".pidbox"  # and how they end


LARGEST_MESSAGE = 64 * 1024  # bytes of a message that is read for its stamp
_CHUNK = 10_000  # commands that are sent together, which bounds the memory they take

# The last message of a list if it is short: Redis has no other way to read a part of it, or to tell its length.
_FRONT = f"local m = redis.call('LINDEX', KEYS[1], -1) if m and #m <= {LARGEST_MESSAGE} then return m end return false"


class RedisQueues(BrokerQueues):
    """Reads one Redis. max_queues: those beyond it share one series. exchange: whose bound queues are asked about
    besides those named; None for no others."""

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
        self._left_out: frozenset[str] = frozenset()
        self._no_scripts = False

    def _read(self) -> list[Reading]:
        channel = self._connected()
        if self._exchange is not None and self._found is None:
            (members,) = _ask(channel, [("smembers", self._binding(channel))])
            self._found = () if isinstance(members, Exception) else self._bound(channel, members)
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
        lengths = self._lengths({queue: [next(answers) for _ in suffixes] for queue in queues})
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
            *(  # an empty queue is a missing key, hence 0
                Reading(JOBS_QUEUE_DEPTH, (SYSTEM, self.broker, queue), float(depth)) for queue, depth in depths.items()
            ),
            *self._oldest(channel, suffixes, {queue: lengths[queue] for queue in own}),
        ]

    def _lengths(self, answers: dict[str, list[Any]]) -> dict[str, list[int]]:
        """The lengths of each queue's lists. One that has a key of another type is left out.

        Raises:
            ResponseError: when that is true of every queue.
        """
        wrong = {queue: each for queue, each in answers.items() if any(isinstance(one, Exception) for one in each)}
        if wrong and len(wrong) == len(answers):
            raise next(one for each in wrong.values() for one in each if isinstance(one, Exception))
        for queue in wrong.keys() - self._left_out:
            logger.warning("jobmetrics: %s: queue %r is left out, its key is of another type", self._where, queue)
        self._left_out = frozenset(wrong)
        return {queue: [int(one) for one in each] for queue, each in answers.items() if queue not in wrong}

    def _oldest(self, channel: Any, suffixes: Sequence[str], lengths: dict[str, list[int]]) -> list[Reading]:
        """When the message that is next to run in each queue was published; nothing for a long message."""
        fronts = {
            queue: queue + next(suffix for suffix, length in zip(suffixes, each, strict=True) if length)
            for queue, each in lengths.items()
            if any(each)
        }
        if not fronts:
            return []
        try:
            messages = _ask(channel, [("eval", key, _FRONT) for key in fronts.values()])
        except ResponseError as error:  # such as for a user that may run no script
            if not self._no_scripts:
                self._no_scripts = True
                logger.warning("jobmetrics: %s: the age of queues cannot be read: %s", self._where, error)
            return []
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


def _ask(channel: Any, commands: Sequence[tuple[str, ...]]) -> list[Any]:
    """The answers to these commands, in one round trip per 10,000; WRONGTYPE as an exception among them.

    Prefixes the keys of those commands that kombu's client does not.

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


def _stamp(message: Any) -> float | None:
    """When a message was published, if its producer said so."""
    try:
        headers = json.loads(message)["headers"]
    except (ValueError, TypeError, KeyError, RecursionError):  # no message, or gone meanwhile
        return None
    return published_at(headers)
