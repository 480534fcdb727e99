"""PromQL from `jobmetrics.families`: expressions that know their labels and refuse mistakes that Prometheus accepts.

A misspelt label in `by (...)` or a matcher is not an error in Prometheus: the panel is empty or wrong. Here it
stops the generator.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

from jobmetrics.families import COLLECTED, COUNTER, GAUGE, HISTOGRAM, JOB_LABELS, QUEUE_LABELS, REGISTERED, Family
from jobmetrics.integration import known_names

APPLICATION_LABEL = "job"  # Prometheus' scrape job: all exporters of one application
HOST_LABEL = "instance"
SCRAPE_LABELS = (APPLICATION_LABEL, HOST_LABEL)  # Prometheus adds them to everything that it scrapes
BOUND_LABEL = "le"

RATE_INTERVAL = "$__rate_interval"
TIME_RANGE = "$__range"

_TIMESTAMP = "_timestamp_seconds"

# Prometheus' own series: whether it could scrape a target, active alerts, and when they became active.
_UP = "up"
_ALERTS = "ALERTS"
_ALERTS_SINCE = "ALERTS_FOR_STATE"
PROMETHEUS_OWN = (_UP, _ALERTS, _ALERTS_SINCE)

ALERT_NAMES = "(Job|Rq).*"  # of the rules that are shipped with the dashboards


class QueryError(Exception):
    """A query uses a label, a value or a type that its family does not have."""


@dataclass(frozen=True, slots=True)
class Expr:
    """An instant vector.

    labels: those of its series. timestamp: whether its values are epoch seconds, which only `age` and `until` accept.
    compound: whether it needs brackets as an operand.
    """

    text: str
    labels: frozenset[str]
    timestamp: bool = False
    compound: bool = False

    def __add__(self, other: Expr) -> Expr:
        return self._with("+", other)

    def __mul__(self, other: Expr | float) -> Expr:
        return self._with("*", other)

    def __truediv__(self, other: Expr) -> Expr:
        return self._with("/", other)

    def above(self, bound: float) -> Expr:
        """The series above the bound; the others drop out."""
        return self._with(">", bound)

    def only(self, value: float) -> Expr:
        """The series with this value; the others drop out."""
        return self._with("==", value)

    def equals(self, value: float) -> Expr:
        """1 for the series with this value, 0 for the others."""
        return self._with("== bool", value)

    def or_else(self, other: Expr) -> Expr:
        """These series, and those of the other expression without a match among these."""
        return self._with("or", other)

    def where(self, other: Expr, *on: str) -> Expr:
        """The series with a match in the other expression, by these labels, or by all labels if none is given."""
        shared = f" on ({_known(on, self.labels & other.labels, self.text)})" if on else ""
        return self._new(f"{self._operand} and{shared} {other._operand}", compound=True)

    def _with(self, operator: str, other: Expr | float) -> Expr:
        if self.timestamp or (isinstance(other, Expr) and other.timestamp):
            raise QueryError(f"{self.text} {operator} ...: timestamps are not amounts; take their age")
        if isinstance(other, Expr) and other.labels != self.labels:
            mine, theirs = sorted(self.labels), sorted(other.labels)
            raise QueryError(f"{self.text} {operator} {other.text}: no series would match, by {mine} and {theirs}")
        operand = other._operand if isinstance(other, Expr) else f"{other:g}"
        return self._new(f"{self._operand} {operator} {operand}", compound=True)

    @property
    def _operand(self) -> str:
        return f"({self.text})" if self.compound else self.text

    def _new(self, text: str, *, compound: bool = False) -> Expr:
        return replace(self, text=text, compound=compound)


def sum_by(vector: Expr, *labels: str) -> Expr:
    """The sum of series, by these labels; of all series if no label is given."""
    if vector.timestamp:
        raise QueryError(f"sum of {vector.text}: timestamps cannot be added")
    return _aggregate("sum", vector, labels)


def max_by(vector: Expr, *labels: str) -> Expr:
    """The greatest of several series; for timestamps, the latest."""
    return _aggregate("max", vector, labels)


def min_by(vector: Expr, *labels: str) -> Expr:
    """The smallest of several series; for timestamps, the earliest."""
    return _aggregate("min", vector, labels)


def count_by(vector: Expr, *labels: str) -> Expr:
    """The number of series."""
    return replace(_aggregate("count", vector, labels), timestamp=False)


def top(count: int, vector: Expr) -> Expr:
    """The series with the greatest values at each point in time."""
    return vector._new(f"topk({count}, {vector.text})")


def age(timestamp: Expr) -> Expr:
    """Seconds since then; 0 for a timestamp in the future, such as one of a clock that is ahead."""
    return _since(timestamp, f"time() - {timestamp._operand}")


def until(timestamp: Expr) -> Expr:
    """Seconds from now to then; 0 for a timestamp in the past."""
    return _since(timestamp, f"{timestamp._operand} - time()")


def _since(timestamp: Expr, text: str) -> Expr:
    if not timestamp.timestamp:
        raise QueryError(f"age of {timestamp.text}, which is not a timestamp")
    return Expr(f"clamp_min({text}, 0)", timestamp.labels)


def share(part: Expr, whole: Expr) -> Expr:
    """Part of whole, from 0 to 1: 0 if there is a whole without a part, absent without a whole."""
    return part.or_else(whole * 0) / whole.above(0)


def quantile(level: float, buckets: Expr, *labels: str) -> Expr:
    """A quantile of the observations in the buckets, for each combination of the labels."""
    found = sum_by(buckets, BOUND_LABEL, *labels)
    return Expr(f"histogram_quantile({level:g}, {found.text})", frozenset(labels))


def _aggregate(operator: str, vector: Expr, labels: Sequence[str]) -> Expr:
    by = f" by ({_known(labels, vector.labels, vector.text)}) " if labels else ""
    return Expr(f"{operator}{by}({vector.text})", frozenset(labels), vector.timestamp)


def _known(labels: Sequence[str], known: frozenset[str], text: str) -> str:
    for label in labels:
        if label not in known:
            raise QueryError(f"{text} has no label {label!r}; it has {', '.join(sorted(known))}")
    return ", ".join(labels)


class Narrowing(Protocol):
    """A dashboard variable: the series with one of the chosen values in a label."""

    @property
    def name(self) -> str:
        """As in ${name}."""

    @property
    def label(self) -> str:
        """The label of the series."""


def matcher(variable: Narrowing) -> str:
    """A variable's matcher. It gives no format, so Grafana escapes the values for a regular expression in quotes."""
    return f'{variable.label}=~"${{{variable.name}}}"'


@dataclass(frozen=True, slots=True)
class Scope:
    """The series of a family, narrowed to what the dashboard's variables choose."""

    variables: tuple[Narrowing, ...]

    def rate(self, counter: Family, **labels: str | Sequence[str]) -> Expr:
        """The growth of a counter per second."""
        _expect(counter, COUNTER)
        return self._over("rate", counter, RATE_INTERVAL, "", labels)

    def increase(self, counter: Family, window: str, **labels: str | Sequence[str]) -> Expr:
        """The growth of a counter in the window. A series that did not exist in the window before counts in full.

        increase() alone would miss the first event of every series, which may be the only one.
        """
        _expect(counter, COUNTER)
        now = self._series(counter, "", labels)
        grown = self._over("increase", counter, window, "", labels)
        before = self._over("last_over_time", counter, window, "", labels, offset=window)
        return grown.where(before).or_else(now)

    def rate_of_buckets(self, histogram: Family, **labels: str | Sequence[str]) -> Expr:
        """The observations per second in each bucket."""
        return self._of_histogram("rate", histogram, RATE_INTERVAL, "_bucket", labels)

    def increase_of_buckets(self, histogram: Family, window: str, **labels: str | Sequence[str]) -> Expr:
        """The observations of the window in each bucket."""
        return self._of_histogram("increase", histogram, window, "_bucket", labels)

    def rate_of_sum(self, histogram: Family, **labels: str | Sequence[str]) -> Expr:
        """The sum of the observations per second."""
        return self._of_histogram("rate", histogram, RATE_INTERVAL, "_sum", labels)

    def rate_of_count(self, histogram: Family, **labels: str | Sequence[str]) -> Expr:
        """The number of observations per second."""
        return self._of_histogram("rate", histogram, RATE_INTERVAL, "_count", labels)

    def gauge(self, gauge: Family, **labels: str | Sequence[str]) -> Expr:
        """The values of a gauge. A value read from a broker appears once, even if several exporters read it."""
        _expect(gauge, GAUGE)
        return _once(gauge, self._series(gauge, "", labels))

    def trend(self, gauge: Family, window: str, **labels: str | Sequence[str]) -> Expr:
        """The change of a gauge per second, by linear regression over the window."""
        _expect(gauge, GAUGE)
        return _once(gauge, self._over("deriv", gauge, window, "", labels))

    def timestamp(self, gauge: Family, **labels: str | Sequence[str]) -> Expr:
        """The timestamps of a gauge, for `age` and `until`."""
        _expect(gauge, GAUGE)
        if not gauge.name.endswith(_TIMESTAMP):
            raise QueryError(f"{gauge.name} is not a timestamp: its name does not end in {_TIMESTAMP}")
        return replace(self.gauge(gauge, **labels), timestamp=True)

    def scraped(self, witness: Family, window: str) -> Expr:
        """1 for each exporter that Prometheus could scrape, 0 for each that it could not.

        witness: a gauge that only exporters have. Targets without it in the window are left out.
        """
        seen = self._over("last_over_time", witness, window, "", {})
        matchers = ",".join(self._matchers(SCRAPE_LABELS))
        return Expr(f"{_UP}{{{matchers}}}", frozenset(SCRAPE_LABELS)).where(seen, *SCRAPE_LABELS)

    def alerts(self) -> Expr:
        """The timestamp since which each firing alert has been active. An alert may lack some of the labels."""
        matchers = [f'alertname=~"{ALERT_NAMES}"', *self._matchers((APPLICATION_LABEL,))]
        since = f"{_ALERTS_SINCE}{{{','.join(matchers)}}}"
        firing = f'{_ALERTS}{{alertstate="firing",{",".join(matchers)}}}'
        labels = {"alertname", "severity", *SCRAPE_LABELS, *JOB_LABELS, *QUEUE_LABELS}
        return Expr(f"{since} and ignoring (alertstate) {firing}", frozenset(labels), timestamp=True, compound=True)

    def _of_histogram(
        self, function: str, family: Family, window: str, suffix: str, labels: Mapping[str, str | Sequence[str]]
    ) -> Expr:
        _expect(family, HISTOGRAM)
        return self._over(function, family, window, suffix, labels)

    def _over(
        self,
        function: str,
        family: Family,
        window: str,
        suffix: str,
        labels: Mapping[str, str | Sequence[str]],
        offset: str = "",
    ) -> Expr:
        series = self._series(family, suffix, labels)
        earlier = f" offset {offset}" if offset else ""
        return series._new(f"{function}({series.text}[{window}]{earlier})")

    def _series(self, family: Family, suffix: str, labels: Mapping[str, str | Sequence[str]]) -> Expr:
        own = (*SCRAPE_LABELS, *family.labels, *([BOUND_LABEL] if suffix == "_bucket" else []))
        narrowed = (APPLICATION_LABEL, *family.labels) if read_from_broker(family) else own
        matchers = [*self._matchers(narrowed), *_chosen(family, labels)]
        text = f"{family.name}{suffix}" + (f"{{{','.join(matchers)}}}" if matchers else "")
        return Expr(text, frozenset(own))

    def _matchers(self, labels: Sequence[str]) -> list[str]:
        return [matcher(variable) for variable in self.variables if variable.label in labels]


def read_from_broker(family: Family) -> bool:
    """Whether several exporters may show the same value."""
    return family.source == COLLECTED and "collector" not in family.labels


def _once(family: Family, vector: Expr) -> Expr:
    return max_by(vector, APPLICATION_LABEL, *family.labels) if read_from_broker(family) else vector


def _chosen(family: Family, labels: Mapping[str, str | Sequence[str]]) -> list[str]:
    fixed = {label: known_names() if values == REGISTERED else values for label, values in family.closed}
    found = []
    for label, chosen in labels.items():
        _known([label], frozenset(family.labels), family.name)
        values = [chosen] if isinstance(chosen, str) else list(chosen)
        for value in values:
            if label in fixed and value not in fixed[label]:
                raise QueryError(f"{family.name}: {label} is never {value!r}; it is one of {', '.join(fixed[label])}")
            if not value.replace("_", "").isalnum():
                raise QueryError(f"{family.name}: {label}={value!r} would have to be escaped")
        found.append(f'{label}="{values[0]}"' if len(values) == 1 else f'{label}=~"{"|".join(values)}"')
    return found


def _expect(family: Family, type_: str) -> None:
    if family.type != type_:
        raise QueryError(f"{family.name} is a {family.type}, and a {type_} is asked for")
