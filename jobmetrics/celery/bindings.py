"""The queues that kombu keeps in Redis: one set of bindings for each exchange."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from typing import Any

logger = logging.getLogger("jobmetrics")

DEFAULT_EXCHANGE = "celery"  # Celery's default for task_default_exchange

KEYS_SCANNED = 5000  # in one reading; Redis serves no other client meanwhile, for about a millisecond
FIRST_SCANS = 10  # at most in the first reading, for the commands that read only once

_INTERNAL_PREFIXES = ("celeryev", "_kombu", "amq.gen-", "bcast.")
_INTERNAL_SUFFIX = ".pidbox"
_TEMPORARY = re.compile(r"(?:.*\.)?[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}\Z", re.DOTALL)


def holds_tasks(queue: str) -> bool:
    """Return whether a queue may hold tasks: it is not for events, remote control, replies or broadcasts."""
    if not queue or queue.startswith(_INTERNAL_PREFIXES) or queue.endswith(_INTERNAL_SUFFIX):
        return False
    return not _TEMPORARY.match(queue)


class Bindings:
    """Finds the bindings by scanning the keys, a part in each reading, and remembers them while they exist.

    where: the broker's safe URL, for the log. limit: exchanges that are remembered.
    """

    def __init__(self, where: str, limit: int) -> None:
        self._where = where
        self._limit = limit
        self._queues: dict[str, tuple[str, ...]] = {DEFAULT_EXCHANGE: ()}  # by exchange
        self._cursor = 0
        self._no_scans = False
        self.is_new = True  # nothing was read yet

    @property
    def queues(self) -> tuple[str, ...]:
        """The names of the queues found so far."""
        return tuple(sorted({queue for queues in self._queues.values() for queue in queues}))

    @property
    def has_scanned_all(self) -> bool:
        """Whether the last scan ended with the last key."""
        return self._cursor == 0

    def commands(self, channel: Any) -> list[tuple[Any, ...]]:
        """Return the commands that read the known bindings and scan for further ones. channel: kombu's."""
        pattern = re.sub(r"([*?\[\]^\\])", r"\\\1", _prefix(channel)) + "*"
        return [
            *(("smembers", channel.keyprefix_queue % (exchange,)) for exchange in self._queues),
            ("scan", self._cursor, "MATCH", pattern, "COUNT", KEYS_SCANNED),
        ]

    def take(self, channel: Any, answers: Sequence[Any]) -> None:
        """Read the answers to `commands`, in its order."""
        self.is_new = False
        *members, scanned = answers
        found = {
            exchange: () if isinstance(each, Exception) else _queues_of(channel, each)
            for exchange, each in zip(self._queues, members, strict=True)
        }
        self._queues = {
            exchange: queues for exchange, queues in found.items() if queues or exchange == DEFAULT_EXCHANGE
        }
        if isinstance(scanned, Exception):  # for example, the user may not scan
            if not self._no_scans:
                self._no_scans = True
                logger.warning(
                    "jobmetrics: %s: queues of other exchanges than %s cannot be found: %s",
                    self._where, DEFAULT_EXCHANGE, scanned,
                )  # fmt: skip
            return
        cursor, keys = scanned
        self._cursor = int(cursor)
        for key in keys:
            exchange = _text(key)[len(_prefix(channel)) :]
            if len(self._queues) < self._limit and holds_tasks(exchange):
                self._queues.setdefault(exchange, ())


def _prefix(channel: Any) -> str:
    """Return the part of a binding's key before the name of the exchange."""
    return f"{getattr(channel.client, 'global_keyprefix', '')}{channel.keyprefix_queue % ('',)}"


def _queues_of(channel: Any, members: Iterable[Any]) -> tuple[str, ...]:
    """Return the queues of a binding. A member is routing key, pattern and queue, joined by separators."""
    names = {_text(member).rpartition(channel.sep)[2] for member in members}
    return tuple(name for name in names if holds_tasks(name))


def _text(answer: Any) -> str:
    return answer.decode(errors="replace") if isinstance(answer, bytes) else str(answer)
