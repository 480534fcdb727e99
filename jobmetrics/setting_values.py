"""The values that settings accept: one function checks and converts each kind of value.

A value is a string from the environment, or an object from code or a TOML file. A value that is not allowed raises a
ValueError, and its message is what is allowed.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Callable, Mapping
from typing import Any

MAX_BUCKETS = 128
MAX_LIMIT = 1024  # characters or labels; a record of the index has room for these
LOG_LEVELS = ("debug", "info", "warning", "error", "critical")

_NO_ACCOUNT = 2**32 - 1  # chown's value for "unchanged"
_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})
# Strings: re compiles and caches them on first use, and most workers never use them.
_METRIC_PATTERN = r"[a-zA-Z_:*?\[\]][a-zA-Z0-9_:*?\[\]!-]*\Z"
_NAMESPACE = r"[a-zA-Z][a-zA-Z0-9_]*\Z"
_APP = r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}\Z"
_LABEL = r"[a-zA-Z_][a-zA-Z0-9_]*\Z"


def text(value: Any) -> str:
    """Accept a non-empty string or path."""
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        raise ValueError("a non-empty string")
    return str(os.fspath(value))


def directory(value: Any) -> str:
    """Accept the path of a directory, and return the absolute path."""
    try:
        path = text(value)
    except ValueError:
        path = "\0"
    if "\0" in path:
        raise ValueError("the path of a directory")
    return os.path.abspath(os.path.expanduser(path))


def group(value: Any) -> int:
    """Accept the name or number of a group, and return its number."""
    import grp  # not on Windows, where nothing is recorded

    return _account(value, lambda name: grp.getgrnam(name).gr_gid, "the name or number of a group on this machine")


def user(value: Any) -> int:
    """Accept the name or number of a user, and return its number."""
    import pwd  # not on Windows, where nothing is recorded

    return _account(value, lambda name: pwd.getpwnam(name).pw_uid, "the name or number of a user on this machine")


def _account(value: Any, number_of: Callable[[str], int], allowed: str) -> int:
    try:
        if isinstance(value, int) or _is_number(value):
            number = -1 if isinstance(value, bool) else int(value)
        else:
            number = number_of(text(value))
    except (KeyError, ValueError):
        number = -1
    if not 0 <= number < _NO_ACCOUNT:
        raise ValueError(allowed)
    return number


def _is_number(value: Any) -> bool:
    return isinstance(value, str) and value.isascii() and value.isdecimal()


def flag(value: Any) -> bool:
    """Accept a bool or a word for one."""
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ValueError("true or false")


def positive_int(value: Any) -> int:
    """Accept a whole number of at least 1."""
    try:
        number = 0 if isinstance(value, (bool, float)) else int(value)
    except (TypeError, ValueError):
        number = 0
    if not 1 <= number <= 10_000_000:
        raise ValueError("a whole number from 1 to 10000000")
    return number


def limit(value: Any) -> int:
    """Accept a limit on lengths and label counts."""
    try:
        number = positive_int(value)
    except ValueError:
        number = 0
    if not 1 <= number <= MAX_LIMIT:
        raise ValueError(f"a whole number from 1 to {MAX_LIMIT}")
    return number


def _bounds(value: Any) -> tuple[float, ...]:
    try:
        numbers = value.split(",") if isinstance(value, str) else list(value)
        bounds = tuple(float(number) for number in numbers)
    except (TypeError, ValueError, OverflowError):
        bounds = ()
    if bounds and bounds[-1] == float("inf"):
        bounds = bounds[:-1]
    in_order = all(low < high for low, high in itertools.pairwise(bounds))
    if not bounds or len(bounds) > MAX_BUCKETS or not in_order or not all(abs(b) < float("inf") for b in bounds):
        raise ValueError(f"1 to {MAX_BUCKETS} finite bounds in ascending order for each metric name or pattern")
    return bounds


def _pairs(value: Any, separator: str, allowed: str) -> dict[Any, Any]:
    """Convert a mapping or the string 'a=b<separator>c=d' to a dict."""
    if isinstance(value, Mapping):
        return dict(value)
    if not isinstance(value, str):
        raise ValueError(allowed)
    pairs: dict[Any, Any] = {}
    for part in filter(None, (part.strip() for part in value.split(separator))):
        name, sign, rest = part.partition("=")
        if not sign or not name.strip() or not rest.strip():
            raise ValueError(allowed)
        pairs[name.strip()] = rest.strip()
    return pairs


def buckets(value: Any) -> Mapping[str, tuple[float, ...]]:
    """Accept histogram bounds by metric name or pattern."""
    allowed = "jobs_duration_seconds=0.1,1,10;jobs_*=1,60 or a table with the same content"
    found = _pairs(value, ";", allowed)
    if not all(isinstance(name, str) and re.match(_METRIC_PATTERN, name) for name in found):
        raise ValueError(allowed)
    return {name: _bounds(bounds) for name, bounds in found.items()}


def error_types(value: Any) -> Mapping[str, str]:
    """Accept names for the label error_type, by exception class or its dotted name."""
    allowed = "package.module.Class=name,... or a table with the same content"
    names: dict[str, str] = {}
    for key, name in _pairs(value, ",", allowed).items():
        path = f"{key.__module__}.{key.__qualname__}" if isinstance(key, type) else key
        if not isinstance(path, str) or not isinstance(name, str) or not name:
            raise ValueError(allowed)
        names[path] = name
    return names


def patterns(value: Any) -> tuple[str, ...]:
    """Accept job type patterns."""
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple, set, frozenset)) or not all(isinstance(part, str) for part in parts):
        raise ValueError("job type patterns such as app.tasks.ping,app.reports.*")
    return tuple(part.strip() for part in parts if part.strip())


def log_level(value: Any) -> str:
    """Accept the name of a log level."""
    level = str(value).lower()
    if level not in LOG_LEVELS:
        raise ValueError(", ".join(LOG_LEVELS))
    return level


def namespace(value: Any) -> str:
    """Accept a prefix of metric names, or an empty string."""
    if value == "":
        return ""
    if not isinstance(value, str) or not re.match(_NAMESPACE, value) or value.endswith("_"):
        raise ValueError("letters, digits and _, starting with a letter and not ending with _, such as acme")
    return value


def app(value: Any) -> str:
    """Accept the name of an application, or an empty string."""
    if value == "":
        return ""
    if not isinstance(value, str) or not re.match(_APP, value):
        raise ValueError("1 to 64 letters, digits, ., _ and -, starting with a letter or digit, such as shop")
    return value


def labels(value: Any) -> Mapping[str, str]:
    """Accept constant labels, as values by name."""
    allowed = "name=value,... with names of letters, digits and _ that are not labels of jobmetrics"
    labels = {str(name): str(text) for name, text in _pairs(value, ",", allowed).items()}
    if not all(re.match(_LABEL, name) and not name.startswith("__") for name in labels):
        raise ValueError(allowed)
    return labels


def listen_address(value: Any) -> str:
    """Accept 'HOST:PORT', '[V6]:PORT' or ':PORT' (all interfaces)."""
    host, colon, port = str(value).rpartition(":")
    if not colon or not _is_number(port) or int(port) > 65535 or (":" in host and not re.match(r"\[.*\]\Z", host)):
        raise ValueError("HOST:PORT such as 127.0.0.1:9909, with a port from 0 to 65535")
    return str(value)
