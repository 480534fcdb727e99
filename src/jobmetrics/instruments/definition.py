"""What may be defined: names, labels and buckets after Prometheus's rules, once a process."""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence

from jobmetrics import families, settings
from jobmetrics.errors import InstrumentError, SettingsError
from jobmetrics.families import COUNTER, HISTOGRAM, Family
from jobmetrics.settings import Settings

MAX_DOCUMENTATION = 1024  # characters; what is longer is cut
# Texts: re compiles and keeps them when the first metric of a user's own is defined, if there is one.
_NAME = r"[a-zA-Z_:][a-zA-Z0-9_:]*\Z"
_LABEL_NAME = r"[a-zA-Z_][a-zA-Z0-9_]*\Z"
GAUGE_MODES = {
    "livesum": families.LIVE_SUM,
    "sum": families.SUM,
    "max": families.MAX,
    "min": families.MIN,
    "mostrecent": families.MOST_RECENT,
}


_declared: dict[str, Family] = {}  # by every name that a family takes in the exposition


def declare(family: Family) -> None:
    """Refuse a second, different definition within this process, and names that another metric's samples have.

    Raises:
        InstrumentError: one line that names both and the way out.
    """
    for name in family.exposed_names:
        known = _declared.setdefault(name, family)
        if known.name != family.name:
            raise InstrumentError(
                f"{family.name} and {known.name} would both be shown as {name}: "
                f"take another name for one of them, or namespace='myapp'"
            )
        if known._replace(help=family.help) != family:
            raise InstrumentError(f"{family.name} is already defined in this process, as another kind of metric")


def declared(name: str) -> Family | None:
    """What this process defined under this name, if anything."""
    return _declared.get(name)


def define(
    type_: str,
    name: object,
    documentation: str,
    labels: tuple[str, ...],
    namespace: str = "",
    subsystem: str = "",
    unit: str = "",
    *,
    mode: str = families.SUM,
    buckets: Sequence[float] = (),
) -> Family:
    """A user's family, checked after Prometheus's rules.

    Raises:
        InstrumentError: one line that names what is wrong and what is allowed.
    """
    full = "_".join(filter(None, (namespace, subsystem, name))) if isinstance(name, str) else ""
    base = full[: -len("_total")] if type_ == COUNTER and full.endswith("_total") else full
    if not name or not base:
        raise InstrumentError(
            f"{name!r} is not a valid metric name: it takes a string that is not empty, such as orders"
        )
    if unit and not base.endswith("_" + unit):
        base = f"{base}_{unit}"
    full = base + "_total" if type_ == COUNTER else base
    limits = _limits()
    if not re.match(_NAME, full) or len(full) > limits.max_name_length:
        most = f"at most {limits.max_name_length} characters"
        raise InstrumentError(f"{full!r} is not a valid metric name: letters, digits, _ and :, {most}")
    _check_labels(full, type_, labels, limits)
    bounds: tuple[float, ...] = ()
    if type_ == HISTOGRAM:
        try:
            bounds = settings.parse("buckets", {full: tuple(map(_bound, buckets))}, shown_as="buckets")[full]
        except SettingsError as error:
            raise InstrumentError(str(error)) from None
    help_text = str(documentation)[:MAX_DOCUMENTATION]
    family = Family(full, type_, help_text, labels, mode, bounds, families.RECORDED, unit)
    _check_own_names(family)
    return family


def _bound(value: object) -> object:
    """A bucket's bound as a plain float, so that numpy's numbers are taken; anything else as it is, to be refused."""
    try:
        return value if isinstance(value, str) else float(value)  # type: ignore[arg-type]  # what has no float raises
    except (TypeError, ValueError, OverflowError):
        return value


@functools.cache
def _own_names() -> dict[str, str]:
    """The metrics of jobmetrics itself, by every name that each takes in the exposition."""
    return {name: own.name for own in families.BUILT_IN for name in own.exposed_names}


def _check_own_names(family: Family) -> None:
    for name in family.exposed_names:
        own = _own_names().get(name)
        if own is not None:
            raise InstrumentError(
                f"{family.name!r} is not allowed: {name} is a metric of jobmetrics itself, or a sample of {own}; "
                f"take another name, or namespace='myapp'"
            )


def _limits() -> Settings:
    """The settings in force or, while none are, those that the environment would give; nothing is put in force.

    A bad environment is reported where recording begins, not where a metric is defined.
    """
    return settings.peek() or settings.read()[0]


def _check_labels(name: str, type_: str, labels: tuple[str, ...], limits: Settings) -> None:
    if len(labels) > limits.max_labels or len(set(labels)) != len(labels):
        raise InstrumentError(f"{name} takes at most {limits.max_labels} labels, each once")
    for label in labels:
        if not re.match(_LABEL_NAME, label) or label.startswith("__") or len(label) > limits.max_label_name_length:
            most = f"at most {limits.max_label_name_length} characters"
            raise InstrumentError(
                f"{label!r} is no label name for {name}: letters, digits and _, {most}, not starting with __"
            )
        if label == "le" and type_ == HISTOGRAM:
            raise InstrumentError(f"{name} may not have the label 'le': a histogram has its own")
