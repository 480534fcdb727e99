"""The protocol of queue collectors: what reads a broker for the exporter, and what a reading is.

The `System` that a package names in its entry point (`jobmetrics.integration`) makes the collectors:

    def collectors(options: CollectorOptions) -> Iterable[Collector]: ...

The exporter calls this once at its start and then each collector's `collect` again and again, always
in the same thread, one thread a collector. Whatever a collector does there cannot hurt a scrape.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from jobmetrics.errors import SettingsError
from jobmetrics.families import OVERFLOW, Family

__all__ = ["Collector", "CollectorOptions", "Reading", "Target", "capped", "safe_url", "without_secrets"]

logger = logging.getLogger("jobmetrics")

DEFAULT_NAME = "default"
DEFAULT_TIMEOUT = 5.0  # seconds
DEFAULT_MAX_QUEUES = 2000

_NAME = re.compile(r"[a-z0-9_-]+\Z")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+._-]*)://")
_ALTERNATIVE = re.compile(r";(?=[A-Za-z][A-Za-z0-9+._-]*://)")  # not every ; : a password may hold one
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]*)(:[0-9]+)?(/[^?#;]*)?\Z")
_CREDENTIALS = re.compile(r"(://)\S*@")
_HIDDEN = "***"


@dataclass(frozen=True, slots=True)
class Reading:
    """One value read from a broker.

    values: one a label of the family, in its order. value: finite, in the family's unit.
    """

    family: Family
    values: tuple[str, ...]
    value: float


class Collector(Protocol):
    """Reads one broker.

    name: what kind of collector it is, the label `collector`. broker: which broker, the label of that name.
    """

    @property
    def name(self) -> str: ...

    @property
    def broker(self) -> str: ...

    def collect(self) -> Sequence[Reading]:
        """Everything it can read, now. What cannot be read is left out, never given as 0.

        Raises:
            CollectorError: with one clear line that holds no secret.
        """
        ...

    def close(self) -> None:
        """Give back connections. A later `collect` may open them again."""
        ...


@dataclass(frozen=True, slots=True)
class Target:
    """A broker to read. name: the label `broker`. url: as given, secrets included; show only `safe_url`."""

    name: str
    url: str

    @classmethod
    def parse(cls, text: str, option: str) -> Target:
        """'[NAME=]URL' as a target; without a name it is called 'default'.

        Raises:
            SettingsError: naming the option (and never a password), when it is no such thing.
        """
        before, sign, rest = text.partition("=")
        name, url = (before, rest) if sign and "://" not in before else (DEFAULT_NAME, text)
        if not _NAME.match(name):
            raise SettingsError(f"{option}: the name {name!r} is not allowed; it takes a-z, 0-9, _ and -")
        if not _SCHEME.match(url) or not url.isprintable() or " " in url:
            raise SettingsError(f"{option}: {safe_url(url)!r} is no broker URL; it takes [NAME=]SCHEME://HOST:PORT/...")
        return cls(name, url)

    @property
    def scheme(self) -> str:
        """What stands before '://'."""
        found = _SCHEME.match(self.url)
        return found[1] if found else ""

    @property
    def safe_url(self) -> str:
        """The URL without user, password and query, fit for logs and pages."""
        return safe_url(self.url)


def safe_url(url: str) -> str:
    """A URL without user, password and query; what does not look like an address is hidden altogether."""
    return ";".join(_safe_alternative(part) for part in _ALTERNATIVE.split(url))


def _safe_alternative(url: str) -> str:
    scheme, sign, rest = url.partition("://")
    if not sign or not _SCHEME.match(url):
        return _HIDDEN
    credentials, at, address = rest.rpartition("@")
    address = re.split(r"[?#]", address, maxsplit=1)[0]
    if not _ADDRESS.match(address):
        address = _HIDDEN
    return f"{scheme}://{_HIDDEN + '@' if at and credentials else ''}{address}"


def without_secrets(text: str, *secrets: str | None) -> str:
    """A message on one line, without what stands before the @ of a URL and without these words."""
    text = _CREDENTIALS.sub(rf"\1{_HIDDEN}@", text)
    for secret in secrets:
        if secret:
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", _HIDDEN, text)  # whole: "p" is in many words
    return " ".join(text.split())


class CollectorOptions:
    """What the exporter was asked to read.

    Args:
        timeout: seconds a collector may wait for its broker.
        max_queues: queues of one broker that have series of their own; the depth of the rest is summed under
            `families.OVERFLOW`.
        given: the values of the job systems' own options, by `Option.keyword`.
    """

    __slots__ = ("given", "max_queues", "timeout")

    def __init__(self, *, timeout: float = DEFAULT_TIMEOUT, max_queues: int = DEFAULT_MAX_QUEUES, **given: Any) -> None:
        self.timeout = timeout
        self.max_queues = max_queues
        self.given = given

    def get(self, keyword: str, default: Any = None) -> Any:
        """The value of a job system's option; the default if it was not given."""
        return self.given.get(keyword, default)


def capped(queues: Sequence[str], limit: int) -> tuple[Sequence[str], Sequence[str]]:
    """The queues that have series of their own, and the rest, which shares one, with any queue of that series' name."""
    if len(queues) <= limit and OVERFLOW not in queues:
        return queues, ()
    own = [queue for queue in queues if queue != OVERFLOW][:limit]
    shown = set(own)
    return own, [queue for queue in queues if queue not in shown]


class WrongTypes:
    """Leaves out queues that have a key of another type, and logs each when it is first left out.

    where: the broker's safe URL, for the log.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._left_out: frozenset[str] = frozenset()

    def leave_out(self, answers: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
        """The answers about each queue, without those queues that have an exception among them.

        Raises:
            Exception: the first of them when that is true of every queue.
        """
        wrong = {queue: each for queue, each in answers.items() if any(isinstance(one, Exception) for one in each)}
        if wrong and len(wrong) == len(answers):
            raise next(one for each in wrong.values() for one in each if isinstance(one, Exception))
        for queue in wrong.keys() - self._left_out:
            logger.warning("jobmetrics: %s: queue %r is left out, a key of it has another type", self._where, queue)
        self._left_out = frozenset(wrong)
        return {queue: each for queue, each in answers.items() if queue not in wrong}
