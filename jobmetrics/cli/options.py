"""The options that commands share, parsed into settings and collector options."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

from jobmetrics import setting_values, settings
from jobmetrics.collector_api import CollectorOptions, Target
from jobmetrics.errors import SettingsError
from jobmetrics.integration import Option, find_systems
from jobmetrics.settings import Settings

logger = logging.getLogger("jobmetrics")

F = TypeVar("F", bound=Callable[..., Any])

ENVIRONMENT_PREFIX = "JOBMETRICS_EXPORTER_"


def _variable(name: str) -> str:
    return ENVIRONMENT_PREFIX + name.upper()


SYSTEM_OPTIONS = tuple(option for system in find_systems().systems for option in system.options)

_DEFAULTS = CollectorOptions()


def _brokers(function: F) -> F:
    for decorate in reversed(
        [
            *(
                click.option(
                    option.flag, option.keyword, multiple=option.repeatable, metavar=option.metavar,
                    envvar=_variable(option.name), show_envvar=True, help=option.help,
                )
                for option in SYSTEM_OPTIONS
            ),
            click.option(
                "--timeout", type=click.FloatRange(0.1, 600), default=_DEFAULTS.timeout, metavar="SECONDS",
                envvar=_variable("timeout"), show_envvar=True, show_default=True,
                help="Time that a broker may take to answer.",
            ),
            click.option(
                "--max-queues", type=click.IntRange(1, 1_000_000), default=_DEFAULTS.max_queues, metavar="COUNT",
                envvar=_variable("max_queues"), show_envvar=True, show_default=True,
                help="Queues of one broker with separate series; "
                "the depths of the rest are summed under __other__.",
            ),
        ]
    ):  # fmt: skip
        function = decorate(function)
    return function


directory_option = click.option(
    "--dir", metavar="DIR", help=f"Registry directory.  [default: {settings.default_dir()}]"
)


def _settings(function: F) -> F:
    for decorate in reversed(
        [
            directory_option,
            click.option("--namespace", metavar="PREFIX", help="Prefix of every metric: acme gives acme_jobs_total."),
            click.option(
                "--label", "labels", multiple=True, metavar="NAME=VALUE",
                help="Constant label of every metric. Repeatable.",
            ),
            click.option(
                "--log-level", metavar="LEVEL", help=f"One of {', '.join(setting_values.LOG_LEVELS)}.  [default: info]"
            ),
        ]
    ):  # fmt: skip
        function = decorate(function)
    return function


def reading(function: F) -> F:
    """Add the options of a command that reads the directory and brokers."""
    return _settings(_brokers(function))


def settings_from(*, labels: Sequence[str] = (), **given: str | None) -> Settings:
    """Load the settings. Options from the command line override everything else.

    Args:
        labels: Values of --label.
        given: Other options by the name of their setting, None where an option is not given.

    Raises:
        SettingsError: A value is not allowed. The message names the option, variable or key.
    """
    return settings.load(**_given(labels, given))


def settings_to_check(*, labels: Sequence[str] = (), **given: str | None) -> tuple[Settings, list[str]]:
    """Load the settings as `settings_from` does, but ignore and return errors of the environment and the file.

    Returns:
        The settings, and one line for each error.

    Raises:
        SettingsError: An option has a value that is not allowed.
    """
    found, findings = settings.read(**_given(labels, given))
    try:
        from_file()
    except SettingsError as error:
        findings.errors.append(str(error))
    return found, list(dict.fromkeys(findings.errors))


def _given(labels: Sequence[str], given: Mapping[str, str | None]) -> dict[str, object]:
    """Parse the settings among a command's options."""
    values: dict[str, object] = {
        name: settings.parse(name, value, shown_as="--" + name.replace("_", "-"))
        for name, value in given.items()
        if value is not None
    }
    if labels:
        values["labels"] = _constant_labels(labels)
    return values


def _constant_labels(labels: Sequence[str]) -> dict[str, str]:
    found = {}
    for label in labels:
        name, sign, value = label.partition("=")
        try:
            found.update(settings.parse("labels", {name: value} if sign else None))
        except SettingsError:
            raise SettingsError(
                f"--label={label!r} is not allowed; it takes NAME=VALUE with a NAME of letters, digits and _"
            ) from None
    return found


def unknown_variables() -> list[str]:
    """Return one line about unknown settings variables and one about unknown variables of the commands.

    The settings skip all JOBMETRICS_EXPORTER_ variables, so misspelt ones are found here.
    """
    _, findings = settings.read()
    unknown = [name for name in sorted(os.environ) if name.startswith(ENVIRONMENT_PREFIX) and name not in _VARIABLES]
    return list(filter(None, (findings.unknown_line(), settings.unknown_line(unknown, _VARIABLES))))


def warn_of_unknown_variables() -> None:
    """Log the lines of `unknown_variables`."""
    for line in unknown_variables():
        logger.warning("jobmetrics: %s", line)


REFRESH_VARIABLE = _variable("refresh")
WEB_CONFIG_VARIABLE = _variable("web_config")
LOG_FORMAT_VARIABLE = _variable("log_format")
HIDE_VARIABLE = _variable("hide_after")
# Keys of the table [exporter] in the file that JOBMETRICS_CONFIG names, by the parameter that they set.
_FILE_KEYS = {
    **{option.name: option.keyword for option in SYSTEM_OPTIONS},
    "timeout": "timeout",
    "max_queues": "max_queues",
    "refresh": "refresh",
    "web_config": "web_config",
    "log_format": "log_format",
    "hide_after": "hide_after",
}
_LISTS = frozenset(option.keyword for option in SYSTEM_OPTIONS if option.repeatable)
_NUMBERS = frozenset({"timeout", "refresh", "hide_after"})
_VARIABLES = tuple(_variable(key) for key in sorted(_FILE_KEYS))


def from_file() -> dict[str, object]:
    """Read the defaults of the commands' parameters from the file that JOBMETRICS_CONFIG names.

    The environment overrides them.

    Raises:
        SettingsError: The file cannot be read, has a key that no command takes, or has a value of a wrong type.
    """
    path = os.environ.get(settings.CONFIG_VARIABLE)
    found: dict[str, object] = {}
    for key, value in (settings.exporter_table(path) if path else {}).items():
        if key not in _FILE_KEYS:
            raise SettingsError(f"unknown key exporter.{key} (in {path}); allowed are {', '.join(_FILE_KEYS)}")
        name = _FILE_KEYS[key]
        found[name] = [value] if name in _LISTS and isinstance(value, str) else value
        if allowed := _not_allowed(name, found[name]):
            raise SettingsError(f"exporter.{key} (in {path}) is not allowed; it takes {allowed}")
    return found


def _not_allowed(name: str, value: object) -> str:
    """Return what a key of the file takes if the value has a wrong type, else an empty string.

    The value may be a secret, so it is not part of the message.
    """
    if name in _LISTS:
        good = isinstance(value, list) and all(isinstance(each, str) for each in value)
        return "" if good else "a string or a list of strings"
    if name == "max_queues":
        return "" if isinstance(value, int | str) and not isinstance(value, bool) else "a whole number"
    if name in _NUMBERS:
        return "" if isinstance(value, float | int | str) and not isinstance(value, bool) else "a number"
    return "" if isinstance(value, str) else "a string"


SECONDS_A_DAY = 86400.0


def hide(function: F) -> F:
    """Add the option --hide-after."""
    return click.option(
        "--hide-after", type=click.FloatRange(0, min_open=True), metavar="DAYS", envvar=HIDE_VARIABLE, show_envvar=True,
        help="Hide series that have not changed for this many days since this process started; no count is lost.",
    )(function)  # fmt: skip


def hide_after_seconds(days: float | None) -> float | None:
    """Convert the value of --hide-after to seconds."""
    return None if days is None else days * SECONDS_A_DAY


def collector_options(*, timeout: float, max_queues: int, **given: Any) -> CollectorOptions:
    """Build the options of the collectors.

    Args:
        timeout: Seconds that a broker may take to answer.
        max_queues: Queues of one broker with separate series.
        given: The job systems' own options, by keyword.

    Raises:
        SettingsError: A broker URL is not valid.
    """
    values = {option.keyword: _value(option, given[option.keyword]) for option in SYSTEM_OPTIONS}
    return CollectorOptions(timeout=timeout, max_queues=max_queues, **values)


def _value(option: Option, given: Any) -> Any:
    if option.broker and option.repeatable:
        return tuple(Target.parse(text, option.flag) for text in given)
    if option.broker:
        return None if given is None else Target.parse(given, option.flag)
    return tuple(given) if option.repeatable else given
