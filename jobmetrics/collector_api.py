"""The protocol of queue collectors, which read brokers for the exporter.

The `System` that a package names in its entry point (`jobmetrics.integration`) has a function that returns them:

    def collectors(options: CollectorOptions) -> Iterable[Collector]: ...

The exporter calls this function once at its start. It then calls each collector's `collect` repeatedly, always in the
same thread, one thread a collector. A collector that fails or hangs does not affect a scrape.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from jobmetrics.errors import SettingsError
from jobmetrics.families import OVERFLOW, Family

__all__ = [
    "DEFAULT_NAME",
    "Collector",
    "CollectorOptions",
    "Reading",
    "Target",
    "WrongTypes",
    "capped",
    "safe_url",
    "without_secrets",
]

logger = logging.getLogger("jobmetrics")

DEFAULT_NAME = "default"
"""The label `broker` of a broker without a name."""

_NAME = re.compile(r"[a-z0-9_-]+\Z")
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+._-]*)://")
_ALTERNATIVE = re.compile(r";(?=[A-Za-z][A-Za-z0-9+._-]*://)")  # only a ; before a URL: a password may contain one
_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[A-Za-z0-9._-]*)(:[0-9]+)?(/[^?#;]*)?\Z")
_CREDENTIALS = re.compile(r"(://)\S*@")
_HIDDEN = "***"


@dataclass(frozen=True, slots=True)
class Reading:
    """One value read from a broker.

    values: one for each label of the family, in the same order. value: finite, in the family's unit.
    """

    family: Family
    values: tuple[str, ...]
    value: float


class Collector(Protocol):
    """Reads one broker.

    name: the label `collector`, the kind of the collector. broker: the label `broker`, the name of the broker.
    """

    @property
    def name(self) -> str: ...

    @property
    def broker(self) -> str: ...

    def collect(self) -> Sequence[Reading]:
        """Read the broker now. A value that cannot be read is left out, never returned as 0.

        Raises:
            CollectorError: The broker cannot be read. The message is one clear line without secrets.
        """
        ...

    def close(self) -> None:
        """Close connections. A later `collect` may open them again."""
        ...


@dataclass(frozen=True, slots=True)
class Target:
    """A broker to read. name: the label `broker`. url: as given, with secrets; show only `safe_url`."""

    name: str
    url: str

    @classmethod
    def parse(cls, text: str, option: str) -> Target:
        """Parse '[NAME=]URL'. The default name is 'default'.

        Args:
            text: The value of the option.
            option: The option, for the error message.

        Raises:
            SettingsError: The value is not valid. The message names the option and contains no password.
        """
        before, sign, rest = text.partition("=")
        name, url = (before, rest) if sign and "://" not in before else (DEFAULT_NAME, text)
        if not _NAME.match(name):
            raise SettingsError(f"{option}: the name {name!r} is not allowed; it takes a-z, 0-9, _ and -")
        if not _SCHEME.match(url) or not url.isprintable() or " " in url:
            raise SettingsError(
                f"{option}: {safe_url(url)!r} is not a broker URL; it takes [NAME=]SCHEME://HOST:PORT/..."
            )
        return cls(name, url)

    @property
    def scheme(self) -> str:
        """The URL's scheme, such as redis; empty without one."""
        found = _SCHEME.match(self.url)
        return found[1] if found else ""

    @property
    def safe_url(self) -> str:
        """The URL without user, password and query, for logs and pages."""
        return safe_url(self.url)


def safe_url(url: str) -> str:
    """Remove user, password and query from a URL. A string that does not look like an address is hidden completely."""
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
    """Return a message on one line, with the credentials of URLs and these secrets hidden."""
    text = _CREDENTIALS.sub(rf"\1{_HIDDEN}@", text)
    for secret in secrets:
        if secret:
            text = re.sub(rf"(?<!\w){re.escape(secret)}(?!\w)", _HIDDEN, text)  # whole words: "p" is in many
    return " ".join(text.split())


def _no_queues(system: str) -> Sequence[str]:  # noqa: ARG001 - the signature of `CollectorOptions.recorded_queues`
    """Return no names, where there is no registry directory."""
    return ()


class CollectorOptions:
    """The options of the collectors.

    Args:
        timeout: Seconds that a broker may take to answer.
        max_queues: Queues of one broker with separate series; the depths of the rest are summed under `__other__`.
        recorded: Returns the names of the queues that the registry directory knows for a job system.
        given: The values of the job systems' own options, by `Option.keyword`.
    """

    __slots__ = ("_recorded", "given", "max_queues", "timeout")

    def __init__(
        self,
        *,
        timeout: float = 5.0,
        max_queues: int = 2000,
        recorded: Callable[[str], Sequence[str]] = _no_queues,
        **given: Any,
    ) -> None:
        self.timeout = timeout
        self.max_queues = max_queues
        self.given = given
        self._recorded = recorded

    def recorded_queues(self, system: str) -> Sequence[str]:
        """Return the names of the queues that the registry directory knows for a job system.

        Jobs were published to them, run from them, or taken from them by a worker of this host. The names change: call
        this in each `collect`. With several brokers, a queue may belong to another one: show it if the broker has it.

        Args:
            system: The job system's name, the label `system`.

        Returns:
            The names in ascending order, without the overflow series' name. Empty until the directory can be read.
        """
        return self._recorded(system)

    def with_recorded(self, recorded: Callable[[str], Sequence[str]]) -> CollectorOptions:
        """Return these options with another source of `recorded_queues`."""
        return CollectorOptions(timeout=self.timeout, max_queues=self.max_queues, recorded=recorded, **self.given)

    def get(self, keyword: str, default: Any = None) -> Any:
        """Return the value of a job system's option, or the default if it was not given."""
        return self.given.get(keyword, default)


def capped(queues: Sequence[str], limit: int) -> tuple[Sequence[str], Sequence[str]]:
    """Split queues into those with separate series and the rest, which share the series `__other__`.

    A queue with the name of that series is always part of the rest.
    """
    if len(queues) <= limit and OVERFLOW not in queues:
        return queues, ()
    own = [queue for queue in queues if queue != OVERFLOW][:limit]
    shown = set(own)
    return own, [queue for queue in queues if queue not in shown]


class WrongTypes:
    """Leaves out queues with a key of a wrong Redis type, and logs each once.

    where: the broker's safe URL, for the log.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._left_out: frozenset[str] = frozenset()

    def leave_out(self, answers: Mapping[str, Sequence[Any]]) -> dict[str, Sequence[Any]]:
        """Return the answers without the queues that have an exception among their answers.

        Args:
            answers: The broker's answers by queue.

        Raises:
            Exception: The first exception, if every queue has one.
        """
        wrong = {queue: each for queue, each in answers.items() if any(isinstance(one, Exception) for one in each)}
        if wrong and len(wrong) == len(answers):
            raise next(one for each in wrong.values() for one in each if isinstance(one, Exception))
        for queue in wrong.keys() - self._left_out:
            logger.warning("jobmetrics: %s: queue %r is left out: a key of it has a wrong type", self._where, queue)
        self._left_out = frozenset(wrong)
        return {queue: each for queue, each in answers.items() if queue not in wrong}
