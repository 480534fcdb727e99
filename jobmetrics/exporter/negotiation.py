"""Which format and encoding a client gets, from what its request accepts (RFC 9110, section 12.5)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial

from prometheus_client.exposition import generate_latest as write_text
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics.exposition import ALLOWUTF8
from prometheus_client.openmetrics.exposition import generate_latest as write_openmetrics
from prometheus_client.registry import Collector

_MAX_LENGTH = 4096  # characters of a header that are looked at; Prometheus sends 250


class _Fixed(Collector):
    """Metrics that are known already, as what prometheus_client writes."""

    def __init__(self, metrics: Iterable[Metric]) -> None:
        self._metrics = metrics

    def collect(self) -> Iterable[Metric]:
        return self._metrics


@dataclass(frozen=True, slots=True)
class Format:
    """A way to write metrics down."""

    media_type: str
    version: str
    writer: Callable[[Collector], bytes]

    @property
    def content_type(self) -> str:
        return f"{self.media_type}; version={self.version}; charset=utf-8"

    def write(self, metrics: Iterable[Metric]) -> bytes:
        """The exposition of these metrics."""
        return self.writer(_Fixed(metrics))


TEXT = Format("text/plain", "0.0.4", write_text)
# All names are checked before. Any other escaping writes a colon in a sample's name as _ (prometheus_client 0.26).
_write_openmetrics = partial(write_openmetrics, escaping=ALLOWUTF8, version="1.0.0")
OPENMETRICS = Format("application/openmetrics-text", "1.0.0", _write_openmetrics)
OPENMETRICS_0 = Format("application/openmetrics-text", "0.0.1", _write_openmetrics)

_FORMATS = (TEXT, OPENMETRICS, OPENMETRICS_0)  # a wildcard gets the first that fits


@dataclass(frozen=True, slots=True)
class _Choice:
    """One part of an Accept header. parameters: in lower case, without q."""

    value: str
    quality: float
    parameters: dict[str, str]


def best_format(accept: str) -> Format:
    """The format that an Accept header likes best, of two liked alike the one it names first.

    Nothing acceptable is answered with text, as Prometheus' own libraries do: a person with a browser sees
    something, and Prometheus always names what it can read.
    """
    best, best_quality = TEXT, 0.0
    refused = {choice.value for choice in _choices(accept) if choice.quality == 0.0}
    for choice in _choices(accept):
        if choice.quality <= best_quality:
            continue
        found = next((each for each in _FORMATS if _fits(each, choice, refused)), None)
        if found is not None:
            best, best_quality = found, choice.quality
    return best


def _fits(offered: Format, choice: _Choice, refused: set[str]) -> bool:
    kind = offered.media_type.partition("/")[0]
    if choice.value == offered.media_type:
        return choice.parameters.get("version", offered.version) == offered.version
    return choice.value in {"*/*", f"{kind}/*"} and offered.media_type not in refused


def accepts_gzip(accept_encoding: str) -> bool:
    """Whether an Accept-Encoding header takes gzip, by name or, unless it refuses the name, by *."""
    liked = {choice.value: choice.quality for choice in _choices(accept_encoding)}
    return liked.get("gzip", liked.get("x-gzip", liked.get("*", 0.0))) > 0.0


def _choices(header: str) -> Iterator[_Choice]:
    """The parts of a header; one whose q is no number from 0 to 1 is left out."""
    for part in header[:_MAX_LENGTH].lower().split(","):
        value, *rest = (text.strip() for text in part.split(";"))
        parameters = {name.strip(): text.strip(' "') for name, _, text in (item.partition("=") for item in rest)}
        try:
            quality = float(parameters.pop("q", "1"))
        except ValueError:
            continue
        if value and 0.0 <= quality <= 1.0:  # false for NaN too
            yield _Choice(value, quality, parameters)
