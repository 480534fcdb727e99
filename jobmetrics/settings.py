"""The settings: from keyword arguments, the environment and a TOML file, checked once, then frozen.

A keyword beats the environment, the environment beats the file. Nothing is read at import.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import itertools
import os
import re
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, FrozenInstanceError, dataclass, field
from typing import Any, NoReturn

from jobmetrics import runtime
from jobmetrics.errors import SettingsError

ENVIRONMENT_PREFIX = "JOBMETRICS_"
CONFIG_VARIABLE = "JOBMETRICS_CONFIG"
EXPORTER_TABLE = "exporter"

DEFAULT_BUCKETS: tuple[float, ...] = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 21600.0,
)  # fmt: skip
MAX_BUCKETS = 128
MAX_LIMIT = 1024  # characters, or labels: what a record of the index has room for
LOG_LEVELS = ("debug", "info", "warning", "error", "critical")

_NO_ACCOUNT = 2**32 - 1  # what chown takes for "leave it"
_TRUE = frozenset({"1", "true", "yes", "on"})
_FALSE = frozenset({"0", "false", "no", "off"})
# Texts: re compiles and keeps them at their first use, which most workers never come to.
_METRIC_PATTERN = r"[a-zA-Z_:*?\[\]][a-zA-Z0-9_:*?\[\]!-]*\Z"
_MAX_NAMES = 100  # of default directories that other users hold
_NAMESPACE = r"[a-zA-Z][a-zA-Z0-9_]*\Z"
_APP = r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}\Z"
_LABEL = r"[a-zA-Z_][a-zA-Z0-9_]*\Z"


def default_dir(app: str = "") -> str:
    """The registry directory when none is set: one per user and application, the same for workers and exporter.

    Never under XDG_RUNTIME_DIR, which a login has and a service has not. Where another user holds the name, the next
    of ~2, ~3, ... is taken, and kept once it is there.
    """
    uid = os.getuid() if hasattr(os, "getuid") else 0
    base = "/dev/shm" if os.access("/dev/shm", os.W_OK | os.X_OK) else tempfile.gettempdir()  # noqa: S108 - shared memory is the point
    path = os.path.join(base, f"jobmetrics-{uid}-{app}" if app else f"jobmetrics-{uid}")
    missing = ""
    for name in (path, *(f"{path}~{number}" for number in range(2, _MAX_NAMES))):
        try:
            if os.lstat(name).st_uid == (os.geteuid() if hasattr(os, "geteuid") else 0):
                return name
        except OSError:
            missing = missing or name
            if name != path:
                break
    return missing or path


def _text(value: Any) -> str:
    if not isinstance(value, (str, os.PathLike)) or not os.fspath(value):
        raise ValueError("a non-empty text")
    return str(os.fspath(value))


def _directory(value: Any) -> str:
    try:
        path = _text(value)
    except ValueError:
        path = "\0"
    if "\0" in path:
        raise ValueError("the path of a directory")
    return os.path.abspath(os.path.expanduser(path))


def _group(value: Any) -> int:
    """A group's name or number as its number."""
    import grp  # not on Windows, where nothing is recorded

    return _account(value, lambda name: grp.getgrnam(name).gr_gid, "the name or number of a group on this machine")


def _user(value: Any) -> int:
    """A user's name or number as its number."""
    import pwd  # not on Windows, where nothing is recorded

    return _account(value, lambda name: pwd.getpwnam(name).pw_uid, "the name or number of a user on this machine")


def _account(value: Any, number_of: Callable[[str], int], allowed: str) -> int:
    try:
        if isinstance(value, int) or _is_number(value):
            number = -1 if isinstance(value, bool) else int(value)
        else:
            number = number_of(_text(value))
    except (KeyError, ValueError):
        number = -1
    if not 0 <= number < _NO_ACCOUNT:
        raise ValueError(allowed)
    return number


def _is_number(value: Any) -> bool:
    return isinstance(value, str) and value.isascii() and value.isdecimal()


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word in _TRUE:
        return True
    if word in _FALSE:
        return False
    raise ValueError("true or false")


def _positive_int(value: Any) -> int:
    try:
        number = 0 if isinstance(value, (bool, float)) else int(value)
    except (TypeError, ValueError):
        number = 0
    if not 1 <= number <= 10_000_000:
        raise ValueError("a whole number from 1 to 10000000")
    return number


def _limit(value: Any) -> int:
    try:
        number = _positive_int(value)
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
        raise ValueError(f"metric name or pattern = 1 to {MAX_BUCKETS} finite bounds, each above the one before")
    return bounds


def _pairs(value: Any, separator: str, allowed: str) -> dict[Any, Any]:
    """A mapping as it is, or the text 'a=b<separator>c=d' as one."""
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


def _buckets(value: Any) -> Mapping[str, tuple[float, ...]]:
    allowed = "jobs_duration_seconds=0.1,1,10;jobs_*=1,60 or a table of the same"
    found = _pairs(value, ";", allowed)
    if not all(isinstance(name, str) and re.match(_METRIC_PATTERN, name) for name in found):
        raise ValueError(allowed)
    return {name: _bounds(bounds) for name, bounds in found.items()}


def _error_types(value: Any) -> Mapping[str, str]:
    """Exception classes, or their dotted names, to the name the error_type label shows."""
    allowed = "package.module.Class=name,... or a table of the same"
    names: dict[str, str] = {}
    for key, name in _pairs(value, ",", allowed).items():
        path = f"{key.__module__}.{key.__qualname__}" if isinstance(key, type) else key
        if not isinstance(path, str) or not isinstance(name, str) or not name:
            raise ValueError(allowed)
        names[path] = name
    return names


def _patterns(value: Any) -> tuple[str, ...]:
    parts = value.split(",") if isinstance(value, str) else value
    if not isinstance(parts, (list, tuple, set, frozenset)) or not all(isinstance(part, str) for part in parts):
        raise ValueError("job type patterns such as app.tasks.ping,app.reports.*")
    return tuple(part.strip() for part in parts if part.strip())


def _log_level(value: Any) -> str:
    level = str(value).lower()
    if level not in LOG_LEVELS:
        raise ValueError(", ".join(LOG_LEVELS))
    return level


def _namespace(value: Any) -> str:
    if value == "":
        return ""
    if not isinstance(value, str) or not re.match(_NAMESPACE, value) or value.endswith("_"):
        raise ValueError("letters, digits and _, starting with a letter, such as acme")
    return value


def _app(value: Any) -> str:
    if value == "":
        return ""
    if not isinstance(value, str) or not re.match(_APP, value):
        raise ValueError("1 to 64 letters, digits, ., _ and -, starting with a letter or digit, such as shop")
    return value


def _labels(value: Any) -> Mapping[str, str]:
    allowed = "name=value,... with names of letters, digits and _, that no metric of jobmetrics uses itself"
    labels = {str(name): str(text) for name, text in _pairs(value, ",", allowed).items()}
    if not all(re.match(_LABEL, name) and not name.startswith("__") for name in labels):
        raise ValueError(allowed)
    return labels


def listen_address(value: Any) -> str:
    """'HOST:PORT', '[V6]:PORT' or ':PORT' (all interfaces), as it is, if it is one.

    Raises:
        ValueError: with what is allowed.
    """
    host, colon, port = str(value).rpartition(":")
    if not colon or not _is_number(port) or int(port) > 65535 or (":" in host and not re.match(r"\[.*\]\Z", host)):
        raise ValueError("HOST:PORT such as 127.0.0.1:9909, with a port from 0 to 65535")
    return str(value)


def _setting(parse: Callable[[Any], Any], description: str, *, default: Any = MISSING, **kw: Any) -> Any:
    return field(default=default, metadata={"parse": parse, "help": description}, **kw)


@dataclass(init=False, repr=False, eq=False)
class Settings:
    """All settings, checked. Build it with `load`; times are seconds."""

    # What dataclass would make itself is written out: it compiles that anew in every process that starts.

    dir: str = _setting(_directory, "the registry directory", default_factory=default_dir)
    dir_group: int | None = _setting(
        _group,
        "group whose members share the directory (mode 2770); none: only its owner (0700)",
        default=None,
    )
    dir_owner: int | None = _setting(
        _user,
        "another user; the commands may read that user's directory. Without it: only their own user's and root's",
        default=None,
    )
    app: str = _setting(
        _app,
        "name of the application, for a default directory of its own; workers and exporter take the same",
        default="",
    )
    enabled: bool = _setting(_flag, "record at all", default=True)
    buckets: Mapping[str, tuple[float, ...]] = _setting(
        _buckets, "histogram bounds by metric name or pattern, in the metric's unit", default_factory=dict
    )
    max_series: int = _setting(
        _positive_int,
        "series the whole directory may hold; taken when the directory is created",
        default=10_000,
    )
    max_name_length: int = _setting(_limit, "characters a metric's name may have", default=128)
    max_label_name_length: int = _setting(_limit, "characters a label's name may have", default=64)
    max_label_value_length: int = _setting(_limit, "characters of a label value that are kept", default=256)
    max_labels: int = _setting(_limit, "labels a metric may have", default=16)
    ignore: tuple[str, ...] = _setting(_patterns, "job types that are not recorded, as patterns", default=())
    error_types: Mapping[str, str] = _setting(
        _error_types, "names the error_type label shows for exception classes", default_factory=dict
    )
    propagate_errors: bool = _setting(
        _flag, "let errors of jobmetrics surface instead of counting them (for tests)", default=False
    )
    log_level: str = _setting(_log_level, "level of the logger 'jobmetrics'", default="info")
    namespace: str = _setting(_namespace, "prefix of every metric name the exporter shows", default="")
    labels: Mapping[str, str] = _setting(
        _labels, "constant labels the exporter adds to every metric", default_factory=dict
    )
    listen: str = _setting(listen_address, "address the exporter serves on", default="127.0.0.1:9909")

    def __init__(self, **values: Any) -> None:
        fields = known()
        if unknown := values.keys() - fields.keys():
            raise TypeError(f"Settings has no {', '.join(sorted(unknown))}")
        if "dir" not in values:
            values["dir"] = default_dir(values.get("app", ""))
        for name, item in fields.items():
            if name not in values:
                values[name] = item.default if item.default_factory is MISSING else item.default_factory()
        vars(self).update(values)

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise FrozenInstanceError(f"cannot assign to field {name!r}")

    def __delattr__(self, name: str) -> NoReturn:
        raise FrozenInstanceError(f"cannot delete field {name!r}")

    def __eq__(self, other: object) -> bool:
        return vars(self) == vars(other) if isinstance(other, Settings) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # some of the values are mappings

    def __repr__(self) -> str:
        return f"Settings({', '.join(f'{name}={getattr(self, name)!r}' for name in known())})"


def known() -> dict[str, dataclasses.Field[Any]]:
    """The settings by name, in their documented order; each field's metadata has `parse` and `help`."""
    return {item.name: item for item in dataclasses.fields(Settings)}


def parse(name: str, value: object, *, shown_as: str | None = None) -> Any:
    """One setting's value, checked.

    Raises:
        SettingsError: naming the key, the value and what is allowed.
    """
    label = shown_as or name
    item = known().get(name)
    if item is None:
        raise SettingsError(f"unknown setting {label}; allowed are {', '.join(known())}")
    if value is None and item.default is None:
        return None
    try:
        return item.metadata["parse"](value)
    except ValueError as error:
        raise SettingsError(f"{label}={value!r} is not allowed; it takes {error}") from None


class Findings:
    """What is wrong with the environment and the file that it names.

    errors: values that cannot be used, one line each. unknown: variables that are not settings, by name: other
    programs may have set them, as Kubernetes does for a Service called jobmetrics. held: the default directory that
    another user holds, where another one is taken for that reason; else empty.
    """

    __slots__ = ("errors", "held", "unknown")

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.unknown: list[str] = []
        self.held = ""

    def unknown_line(self) -> str:
        """One line about the unknown variables; empty when there are none."""
        return unknown_line(self.unknown, [CONFIG_VARIABLE, *(ENVIRONMENT_PREFIX + key.upper() for key in known())])


def unknown_line(names: Sequence[str], allowed: Sequence[str]) -> str:
    """One line about variables that are not settings, without their values; empty when there are none."""
    if not names:
        return ""
    what = "is not a setting" if len(names) == 1 else "are not settings"
    return f"{', '.join(names)} {what}, and ignored; the settings are {', '.join(allowed)}"


def from_environment(environ: Mapping[str, str], findings: Findings) -> dict[str, Any]:
    """The settings named by JOBMETRICS_* variables; what cannot be used is left out and added to the findings."""
    found: dict[str, Any] = {}
    for variable in sorted(environ):
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable == CONFIG_VARIABLE:
            continue
        name = variable[len(ENVIRONMENT_PREFIX) :].lower()
        if name.split("_", 1)[0] in {"demo", "exporter"}:
            continue  # the commands' own variables, which are not settings of the recording
        if variable != variable.upper() or name not in known():
            findings.unknown.append(variable)
            continue
        try:
            found[name] = parse(name, environ[variable], shown_as=variable)
        except SettingsError as error:
            findings.errors.append(str(error))
    return found


def from_file(path: str, findings: Findings) -> dict[str, Any]:
    """The settings in a TOML file, at its top level; what cannot be used is left out and added to the findings.

    Its table [exporter] is the commands' own.
    """
    try:
        table = _toml(path)
    except SettingsError as error:
        findings.errors.append(str(error))
        return {}
    table.pop(EXPORTER_TABLE, None)
    found: dict[str, Any] = {}
    for name, value in table.items():
        try:
            found[name] = parse(name, value, shown_as=f"{name} (in {path})")
        except SettingsError as error:
            findings.errors.append(str(error))
    return found


def exporter_table(path: str) -> dict[str, Any]:
    """The table [exporter] of a TOML file: what the exporter's command line takes beside the settings.

    Raises:
        SettingsError: when the file cannot be read, is no TOML, or has something else of that name.
    """
    table = _toml(path).get(EXPORTER_TABLE, {})
    if not isinstance(table, dict):
        raise SettingsError(f"{EXPORTER_TABLE} (in {path}) is not allowed; it takes a table [{EXPORTER_TABLE}]")
    return table


def _toml(path: str) -> dict[str, Any]:
    try:
        if sys.version_info >= (3, 11):
            import tomllib
        else:
            import tomli as tomllib
    except ImportError:
        raise SettingsError(f"{CONFIG_VARIABLE} needs the package tomli on Python 3.10") from None
    try:
        with open(path, "rb") as file:
            return tomllib.load(file)
    except OSError as error:
        raise SettingsError(f"{CONFIG_VARIABLE}={path!r} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{CONFIG_VARIABLE}={path!r} is no TOML: {error}") from None


def load(environ: Mapping[str, str] | None = None, /, **keywords: object) -> Settings:
    """The settings from keywords, the environment and the file it names, in that order of strength.

    Raises:
        SettingsError: one clear line naming the key, the value and what is allowed.
    """
    settings, findings = read(environ, **keywords)
    if findings.errors:
        raise SettingsError(findings.errors[0])
    return settings


def read(environ: Mapping[str, str] | None = None, /, **keywords: object) -> tuple[Settings, Findings]:
    """As `load`, but what is wrong with the environment or the file counts as not given, and is a finding.

    Raises:
        SettingsError: for a keyword that is unknown or has a bad value.
    """
    environ = os.environ if environ is None else environ
    findings = Findings()
    values: dict[str, Any] = {}
    if path := environ.get(CONFIG_VARIABLE):
        values.update(from_file(path, findings))
    values.update(from_environment(environ, findings))
    values.update({name: parse(name, value) for name, value in keywords.items()})
    settings = Settings(**values)
    findings.held = passed_over(settings)
    return settings, findings


def passed_over(settings: Settings) -> str:
    """The default directory that another user holds, if these settings take the next free name for that reason."""
    held, found, _ = settings.dir.rpartition("~")
    return held if found and settings.dir == default_dir(settings.app) else ""


def buckets_for(metric: str, buckets: Mapping[str, tuple[float, ...]]) -> tuple[float, ...] | None:
    """The bounds set for a metric: under its name, else under the first pattern that fits; None if none is."""
    if metric in buckets:
        return buckets[metric]
    return next((bounds for pattern, bounds in buckets.items() if fnmatch.fnmatchcase(metric, pattern)), None)


class Active:
    """The settings of this process, once they were read.

    findings: what is wrong with the environment or the file, until it is reported.
    locks: by pid. A lock that another thread held at a fork is never released in the child.
    """

    def __init__(self) -> None:
        self.settings: Settings | None = None
        self.findings: Findings | None = None
        self.locks: dict[int, threading.RLock] = {}


def making() -> threading.RLock:
    """The lock under which this process makes its settings, writer and recorder, one of each."""
    return runtime.state(Active).locks.setdefault(os.getpid(), threading.RLock())


def configure(**keywords: object) -> Settings:
    """Load the settings with these keywords and put them in force for this process.

    Call it before anything records: what has been recorded stays where it was.

    Raises:
        SettingsError: for an unknown key or a bad value among the keywords. What is wrong with the environment or
            the file counts as not given, and is logged when recording begins.
    """
    settings, findings = read(None, **keywords)
    _activate(settings, findings)
    return settings


def use(settings: Settings | None) -> None:
    """Make settings active; None forgets them, so that they are read anew when next asked for."""
    _activate(settings, None)


def _activate(settings: Settings | None, findings: Findings | None) -> None:
    active = runtime.state(Active)
    with making():
        active.settings, active.findings = settings, findings


def peek() -> Settings | None:
    """The active settings if they were read already; never reads them, never raises."""
    return runtime.state(Active).settings


def in_force() -> Settings:
    """The settings of this process, read on first use. A bad environment or file never raises here."""
    active = runtime.state(Active)
    if active.settings is None:
        settings, findings = read()
        with making():
            if active.settings is None:
                active.settings, active.findings = settings, findings
    return active.settings


def take_findings() -> Findings:
    """What is wrong with the environment and the file of the active settings, once: the caller reports it."""
    active = runtime.state(Active)
    with making():
        findings, active.findings = active.findings, None
    return findings or Findings()
