"""The settings: read from keyword arguments, the environment and a TOML file, checked once and then frozen.

Keywords override the environment, and the environment overrides the file. Nothing is read at import.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import os
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, FrozenInstanceError, dataclass, field
from typing import Any, NoReturn

from jobmetrics import runtime
from jobmetrics import setting_values as accept
from jobmetrics.errors import SettingsError

ENVIRONMENT_PREFIX = "JOBMETRICS_"
CONFIG_VARIABLE = "JOBMETRICS_CONFIG"
EXPORTER_TABLE = "exporter"

DEFAULT_BUCKETS: tuple[float, ...] = (
    0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 21600.0,
)  # fmt: skip
_MAX_NAMES = 100  # names to try for the default directory while other users own them


def default_dir(app: str = "") -> str:
    """Return the default registry directory: one per user and application, the same for workers and exporter.

    XDG_RUNTIME_DIR is never used: a login sets it, a service does not. If another user owns the name, the first of
    ~2, ~3, ... that exists for this user or is free is used.
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


def _setting(parse: Callable[[Any], Any], description: str, *, default: Any = MISSING, **kw: Any) -> Any:
    return field(default=default, metadata={"parse": parse, "help": description}, **kw)


@dataclass(init=False, repr=False, eq=False)
class Settings:
    """All settings, checked. Build it with `load`.

    Durations are in seconds.
    """

    # The methods are written out because dataclass would compile them in every process that starts.

    dir: str = _setting(accept.directory, "the registry directory", default_factory=default_dir)
    dir_group: int | None = _setting(
        accept.group,
        "group with access to the directory (mode 2770); without one, only the owner has access (mode 0700)",
        default=None,
    )
    dir_owner: int | None = _setting(
        accept.user,
        "another user that may own the directory that the commands read; without it, only their own user and root",
        default=None,
    )
    app: str = _setting(
        accept.app,
        "name of the application, for a separate default directory; set the same for workers and exporter",
        default="",
    )
    enabled: bool = _setting(accept.flag, "whether to record", default=True)
    buckets: Mapping[str, tuple[float, ...]] = _setting(
        accept.buckets, "histogram bounds by metric name or pattern, in the metric's unit", default_factory=dict
    )
    max_series: int = _setting(
        accept.positive_int,
        "series that the directory may hold; read when the directory is created",
        default=10_000,
    )
    max_name_length: int = _setting(accept.limit, "maximum length of a metric name, in characters", default=128)
    max_label_name_length: int = _setting(accept.limit, "maximum length of a label name, in characters", default=64)
    max_label_value_length: int = _setting(
        accept.limit, "maximum length of a label value, in characters; the rest is cut off", default=256
    )
    max_labels: int = _setting(accept.limit, "maximum number of labels of a metric", default=16)
    ignore: tuple[str, ...] = _setting(accept.patterns, "patterns of job types that are not recorded", default=())
    error_types: Mapping[str, str] = _setting(
        accept.error_types, "names of exception classes for the label error_type", default_factory=dict
    )
    propagate_errors: bool = _setting(
        accept.flag, "raise errors of jobmetrics instead of counting them (for tests)", default=False
    )
    log_level: str = _setting(accept.log_level, "level of the logger 'jobmetrics'", default="info")
    namespace: str = _setting(accept.namespace, "prefix of every metric name that the exporter serves", default="")
    labels: Mapping[str, str] = _setting(
        accept.labels, "constant labels that the exporter adds to every metric", default_factory=dict
    )
    listen: str = _setting(accept.listen_address, "address that the exporter serves on", default="127.0.0.1:9909")

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

    @property
    def metric_prefix(self) -> str:
        """What the namespace puts before each metric name; empty without a namespace."""
        return f"{self.namespace}_" if self.namespace else ""

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise FrozenInstanceError(f"cannot assign to field {name!r}")

    def __delattr__(self, name: str) -> NoReturn:
        raise FrozenInstanceError(f"cannot delete field {name!r}")

    def __eq__(self, other: object) -> bool:
        return vars(self) == vars(other) if isinstance(other, Settings) else NotImplemented

    __hash__ = None  # type: ignore[assignment]  # some values are mappings

    def __repr__(self) -> str:
        return f"Settings({', '.join(f'{name}={getattr(self, name)!r}' for name in known())})"


def known() -> dict[str, dataclasses.Field[Any]]:
    """Return the settings by name, in their documented order. Each field's metadata has `parse` and `help`."""
    return {item.name: item for item in dataclasses.fields(Settings)}


def parse(name: str, value: object, *, shown_as: str | None = None) -> Any:
    """Check and convert the value of one setting.

    Args:
        name: The setting.
        value: Its value.
        shown_as: The name in error messages, such as the variable; the setting's name if None.

    Raises:
        SettingsError: The setting is unknown or the value is not allowed. The message shows what is allowed.
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
    """Findings about the environment and the configuration file.

    errors: values that are not allowed, one line each. unknown: names of variables that are not settings; other
    programs may have set them, as Kubernetes does for a Service called jobmetrics. held: the default directory, if
    another user owns it and another directory is used instead; else empty.
    """

    __slots__ = ("errors", "held", "unknown")

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.unknown: list[str] = []
        self.held = ""

    def unknown_line(self) -> str:
        """Return one line about the unknown variables; empty without any."""
        return unknown_line(self.unknown, [CONFIG_VARIABLE, *(ENVIRONMENT_PREFIX + key.upper() for key in known())])


def unknown_line(names: Sequence[str], allowed: Sequence[str]) -> str:
    """Return one line about variables that are not settings, without their values; empty without any."""
    if not names:
        return ""
    what = "is not a setting and is ignored" if len(names) == 1 else "are not settings and are ignored"
    return f"{', '.join(names)} {what}; the settings are {', '.join(allowed)}"


def from_environment(environ: Mapping[str, str], findings: Findings) -> dict[str, Any]:
    """Read settings from JOBMETRICS_* variables. Errors and unknown variables are added to the findings."""
    found: dict[str, Any] = {}
    for variable in sorted(environ):
        if not variable.startswith(ENVIRONMENT_PREFIX) or variable == CONFIG_VARIABLE:
            continue
        name = variable[len(ENVIRONMENT_PREFIX) :].lower()
        if name.split("_", 1)[0] == "exporter":
            continue  # an option of the commands, not a setting
        if variable != variable.upper() or name not in known():
            findings.unknown.append(variable)
            continue
        try:
            found[name] = parse(name, environ[variable], shown_as=variable)
        except SettingsError as error:
            findings.errors.append(str(error))
    return found


def from_file(path: str, findings: Findings) -> dict[str, Any]:
    """Read settings from the top level of a TOML file. Errors are added to the findings.

    The commands read the table [exporter] themselves.
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
    """Read the table [exporter] of a TOML file: options of the commands that are not settings.

    Raises:
        SettingsError: The file cannot be read, is not valid TOML, or its key exporter is not a table.
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
        raise SettingsError(f"{CONFIG_VARIABLE}={path!r} is not valid TOML: {error}") from None


def load(environ: Mapping[str, str] | None = None, /, **keywords: object) -> Settings:
    """Load settings from keywords, the environment and the configuration file; the first of them that has a key wins.

    Args:
        environ: The environment; `os.environ` if None.
        keywords: Settings by name.

    Raises:
        SettingsError: A setting is unknown or a value is not allowed. The message is one line with the key, the
            value and what is allowed.
    """
    settings, findings = read(environ, **keywords)
    if findings.errors:
        raise SettingsError(findings.errors[0])
    return settings


def read(environ: Mapping[str, str] | None = None, /, **keywords: object) -> tuple[Settings, Findings]:
    """Load settings as `load` does, but ignore errors of the environment and the file, and return them as findings.

    Raises:
        SettingsError: A keyword is unknown or its value is not allowed.
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
    """Return the default directory if another user owns it and these settings use another one; else an empty string."""
    held, found, _ = settings.dir.rpartition("~")
    return held if found and settings.dir == default_dir(settings.app) else ""


def buckets_for(metric: str, buckets: Mapping[str, tuple[float, ...]]) -> tuple[float, ...] | None:
    """Return the bounds set for a metric: by its name, else by the first pattern that matches; None without either."""
    if metric in buckets:
        return buckets[metric]
    return next((bounds for pattern, bounds in buckets.items() if fnmatch.fnmatchcase(metric, pattern)), None)


class ActiveSettings:
    """The active settings of this process, after they are first read.

    findings: what is wrong with the environment or the file, until it is reported. locks: by pid, because a lock that
    another thread held at a fork is never released in the child.
    """

    def __init__(self) -> None:
        self.settings: Settings | None = None
        self.findings: Findings | None = None
        self.locks: dict[int, threading.RLock] = {}


def making() -> threading.RLock:
    """Return the lock under which this process creates its settings, its writer and its recorder."""
    return runtime.state(ActiveSettings).locks.setdefault(os.getpid(), threading.RLock())


def configure(**keywords: object) -> Settings:
    """Load the settings with these keywords and make them active in this process.

    Call it before anything is recorded: earlier updates stay in the earlier directory. Errors in the environment and
    the file are ignored here, and logged when recording begins.

    Args:
        keywords: Settings by name, as on the configuration page. Durations are in seconds.

    Returns:
        The active settings.

    Raises:
        SettingsError: A keyword is unknown or its value is not allowed.

    Example:
        >>> from jobmetrics import configure
        >>> settings = configure(dir="/run/shop/metrics", ignore=["shop.tasks.ping"])
        >>> settings.ignore
        ('shop.tasks.ping',)
    """
    settings, findings = read(None, **keywords)
    _activate(settings, findings)
    return settings


def use(settings: Settings | None) -> None:
    """Make settings active. With None, the next use reads them again."""
    _activate(settings, None)


def _activate(settings: Settings | None, findings: Findings | None) -> None:
    active = runtime.state(ActiveSettings)
    with making():
        active.settings, active.findings = settings, findings


def peek() -> Settings | None:
    """Return the active settings if they are already read, else None. Never raises."""
    return runtime.state(ActiveSettings).settings


def active() -> Settings:
    """Return the active settings, read on first use. Errors of the environment or the file never raise here."""
    active = runtime.state(ActiveSettings)
    if active.settings is None:
        settings, findings = read()
        with making():
            if active.settings is None:
                active.settings, active.findings = settings, findings
    return active.settings


def take_findings() -> Findings:
    """Return the findings of the active settings once. The caller reports them."""
    active = runtime.state(ActiveSettings)
    with making():
        findings, active.findings = active.findings, None
    return findings or Findings()
