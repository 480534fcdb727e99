from __future__ import annotations

import dataclasses
import grp
import os
import pwd
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from jobmetrics import settings
from jobmetrics.errors import SettingsError
from jobmetrics.settings import DEFAULT_BUCKETS, Settings, buckets_for, from_environment, load, parse

GROUP = grp.getgrgid(os.getgid())
USER = pwd.getpwuid(os.getuid())


class Quota(Exception):
    pass


QUOTA = f"{__name__}.Quota"

# key, given value, resulting value
GOOD_KEYWORDS: list[tuple[str, object, object]] = [
    ("dir", "/run/metrics", "/run/metrics"),
    ("dir", Path("/run/metrics"), "/run/metrics"),
    ("dir", "/run/a/../metrics/", "/run/metrics"),
    ("dir_group", GROUP.gr_name, GROUP.gr_gid),
    ("dir_group", GROUP.gr_gid, GROUP.gr_gid),
    ("dir_group", None, None),
    ("dir_owner", USER.pw_name, USER.pw_uid),
    ("dir_owner", USER.pw_uid, USER.pw_uid),
    ("dir_owner", 4321, 4321),
    ("dir_owner", None, None),
    ("app", "shop", "shop"),
    ("app", "", ""),
    ("enabled", False, False),
    ("buckets", {"jobs_*": [1, 2.5]}, {"jobs_*": (1.0, 2.5)}),
    ("buckets", {"jobs_duration_seconds": "1,2"}, {"jobs_duration_seconds": (1.0, 2.0)}),
    ("buckets", {"x": [1, float("inf")]}, {"x": (1.0,)}),
    ("max_name_length", 7, 7),
    ("max_label_name_length", 7, 7),
    ("max_label_value_length", 7, 7),
    ("max_labels", 7, 7),
    ("max_series", 1, 1),
    ("max_series", 10_000_000, 10_000_000),
    ("ignore", ["celery.*", " ping "], ("celery.*", "ping")),
    ("error_types", {Quota: "quota"}, {QUOTA: "quota"}),
    ("error_types", {"a.b.C": "quota"}, {"a.b.C": "quota"}),
    ("propagate_errors", True, True),
    ("log_level", "DEBUG", "debug"),
    ("namespace", "acme_1", "acme_1"),
    ("namespace", "", ""),
    ("labels", {"env": "prod", "shard": 3}, {"env": "prod", "shard": "3"}),
    ("listen", "127.0.0.1:0", "127.0.0.1:0"),
    ("listen", "[::1]:65535", "[::1]:65535"),
    ("listen", ":9909", ":9909"),
]

GOOD_TEXTS: list[tuple[str, str, object]] = [
    ("app", "shop-2", "shop-2"),
    ("dir", "/run/metrics", "/run/metrics"),
    ("dir_group", str(GROUP.gr_gid), GROUP.gr_gid),
    ("dir_group", GROUP.gr_name, GROUP.gr_gid),
    ("dir_owner", str(USER.pw_uid), USER.pw_uid),
    ("dir_owner", USER.pw_name, USER.pw_uid),
    *[("enabled", text, True) for text in ("1", "true", "Yes", " on ")],
    *[("enabled", text, False) for text in ("0", "false", "No", "OFF")],
    (
        "buckets",
        "jobs_duration_seconds=0.1,1;jobs_*=1,60",
        {"jobs_duration_seconds": (0.1, 1.0), "jobs_*": (1.0, 60.0)},
    ),
    ("buckets", "x=1,+Inf", {"x": (1.0,)}),
    ("buckets", "", {}),
    ("max_name_length", "7", 7),
    ("max_label_name_length", "7", 7),
    ("max_label_value_length", "7", 7),
    ("max_labels", "7", 7),
    ("max_series", "500", 500),
    ("ignore", "celery.*, app.ping,", ("celery.*", "app.ping")),
    ("error_types", "a.B=quota, c.D=net", {"a.B": "quota", "c.D": "net"}),
    ("propagate_errors", "yes", True),
    ("log_level", "warning", "warning"),
    ("namespace", "acme", "acme"),
    ("labels", "env=prod,dc=eu=1", {"env": "prod", "dc": "eu=1"}),
    ("listen", "localhost:80", "localhost:80"),
]

GOOD_TOML: list[tuple[str, str, object]] = [
    ("dir", '"/run/metrics"', "/run/metrics"),
    ("dir_group", str(GROUP.gr_gid), GROUP.gr_gid),
    ("dir_owner", str(USER.pw_uid), USER.pw_uid),
    ("app", '"shop"', "shop"),
    ("enabled", "false", False),
    ("buckets", "{'jobs_*' = [1, 60.5]}", {"jobs_*": (1.0, 60.5)}),
    ("max_name_length", "7", 7),
    ("max_label_name_length", "7", 7),
    ("max_label_value_length", "7", 7),
    ("max_labels", "7", 7),
    ("max_series", "500", 500),
    ("ignore", '["celery.*"]', ("celery.*",)),
    ("error_types", "{'a.B' = 'quota'}", {"a.B": "quota"}),
    ("propagate_errors", "true", True),
    ("log_level", '"error"', "error"),
    ("namespace", '"acme"', "acme"),
    ("labels", "{env = 'prod'}", {"env": "prod"}),
    ("listen", '"0.0.0.0:9909"', "0.0.0.0:9909"),
]

# key, bad value, a word of the allowed values in the message
BAD_KEYWORDS: list[tuple[str, object, str]] = [
    ("dir", "", "path of a directory"),
    ("dir", None, "path of a directory"),
    ("dir", 7, "path of a directory"),
    ("dir", "a\0b", "path of a directory"),
    ("dir_group", "no-such-group-here", "group on this machine"),
    ("dir_group", True, "group on this machine"),
    ("dir_group", -1, "group on this machine"),
    ("dir_group", "²", "group on this machine"),
    ("dir_group", [], "group on this machine"),
    ("dir_owner", "no-such-user-here", "user on this machine"),
    ("dir_owner", True, "user on this machine"),
    ("dir_owner", -1, "user on this machine"),
    ("dir_owner", [], "user on this machine"),
    ("app", "../shop", "letters, digits"),
    ("app", 1, "letters, digits"),
    ("enabled", "maybe", "true or false"),
    ("enabled", 2, "true or false"),
    ("enabled", None, "true or false"),
    ("buckets", "jobs_total", "jobs_duration_seconds=0.1,1,10"),
    ("buckets", {"9x": [1]}, "jobs_duration_seconds=0.1,1,10"),
    ("buckets", [1, 2], "jobs_duration_seconds=0.1,1,10"),
    ("buckets", {"x": []}, "1 to 128 finite bounds"),
    ("buckets", {"x": [float("inf")]}, "1 to 128 finite bounds"),
    ("buckets", {"x": [2, 1]}, "1 to 128 finite bounds"),
    ("buckets", {"x": [1, 1]}, "1 to 128 finite bounds"),
    ("buckets", {"x": [float("nan")]}, "1 to 128 finite bounds"),
    ("buckets", {"x": [float("-inf"), 1]}, "1 to 128 finite bounds"),
    ("buckets", {"x": list(range(129))}, "1 to 128 finite bounds"),
    ("buckets", {"x": ["a"]}, "1 to 128 finite bounds"),
    ("buckets", {"x": 1}, "1 to 128 finite bounds"),
    ("buckets", {"x": [1, 10**400]}, "1 to 128 finite bounds"),
    ("max_name_length", 1025, "from 1 to 1024"),
    ("max_label_name_length", 1025, "from 1 to 1024"),
    ("max_label_value_length", 1025, "from 1 to 1024"),
    ("max_labels", 1025, "from 1 to 1024"),
    ("max_series", 0, "from 1 to 10000000"),
    ("max_series", 10_000_001, "from 1 to 10000000"),
    ("max_series", 1.5, "from 1 to 10000000"),
    ("max_series", True, "from 1 to 10000000"),
    ("max_series", "many", "from 1 to 10000000"),
    ("max_series", float("inf"), "from 1 to 10000000"),
    ("max_series", float("nan"), "from 1 to 10000000"),
    ("ignore", 5, "job type patterns"),
    ("ignore", [5], "job type patterns"),
    ("error_types", "a.B", "package.module.Class=name"),
    ("error_types", {"a.B": ""}, "package.module.Class=name"),
    ("error_types", {"a.B": 5}, "package.module.Class=name"),
    ("error_types", {5: "five"}, "package.module.Class=name"),
    ("propagate_errors", "2", "true or false"),
    ("log_level", "loud", "debug, info, warning, error, critical"),
    ("log_level", None, "debug, info, warning, error, critical"),
    ("namespace", "acme_", "starting with a letter"),
    ("namespace", "9acme", "starting with a letter"),
    ("namespace", "a-b", "starting with a letter"),
    ("namespace", None, "starting with a letter"),
    ("labels", {"__env": "x"}, "name=value"),
    ("labels", {"a-b": "x"}, "name=value"),
    ("labels", "env", "name=value"),
    ("labels", ["env"], "name=value"),
    ("listen", "9909", "HOST:PORT"),
    ("listen", "host:", "HOST:PORT"),
    ("listen", "host:65536", "HOST:PORT"),
    ("listen", "::1:9909", "HOST:PORT"),
    ("listen", "host:²", "HOST:PORT"),
]

BAD_TEXTS: list[tuple[str, str, str]] = [
    (key, value, allowed) for key, value, allowed in BAD_KEYWORDS if isinstance(value, str) and "\0" not in value
] + [
    ("buckets", "x=1,,2", "1 to 128 finite bounds"),
    ("max_name_length", "0", "from 1 to 1024"),
    ("max_label_name_length", "0", "from 1 to 1024"),
    ("max_label_value_length", "0", "from 1 to 1024"),
    ("max_labels", "0", "from 1 to 1024"),
    ("max_series", "1e3", "from 1 to 10000000"),
    ("labels", "=x", "name=value"),
    ("labels", "env=", "name=value"),
]

BAD_TOML: list[tuple[str, str, str]] = [
    ("dir_owner", "[]", "user on this machine"),
    ("dir", "7", "path of a directory"),
    ("dir_group", "true", "group on this machine"),
    ("app", "1", "letters, digits"),
    ("enabled", "1.0", "true or false"),
    ("buckets", "[1, 2]", "jobs_duration_seconds=0.1,1,10"),
    ("buckets", "{x = [2, 1]}", "1 to 128 finite bounds"),
    ("max_name_length", "1.5", "from 1 to 1024"),
    ("max_label_name_length", "1.5", "from 1 to 1024"),
    ("max_label_value_length", "1.5", "from 1 to 1024"),
    ("max_labels", "1.5", "from 1 to 1024"),
    ("max_series", "inf", "from 1 to 10000000"),
    ("ignore", "{}", "job type patterns"),
    ("error_types", "{'a.B' = 1}", "package.module.Class=name"),
    ("propagate_errors", "[]", "true or false"),
    ("log_level", "10", "debug, info, warning, error, critical"),
    ("namespace", "5", "starting with a letter"),
    ("labels", "'env'", "name=value"),
    ("listen", "9909", "HOST:PORT"),
]


def toml(tmp_path: Path, text: str) -> dict[str, str]:
    """An environment with a settings file of this text."""
    file = tmp_path / "jobmetrics.toml"
    file.write_text(text)
    return {"JOBMETRICS_CONFIG": str(file)}


def refusal(environ: dict[str, str], **keywords: object) -> str:
    """The one-line message of refused settings."""
    with pytest.raises(SettingsError) as caught:
        load(environ, **keywords)
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_every_setting_is_in_every_table() -> None:
    names = set(settings.known())
    for table in (GOOD_KEYWORDS, GOOD_TEXTS, GOOD_TOML, BAD_KEYWORDS, BAD_TOML):
        assert {row[0] for row in table} == names
    assert {row[0] for row in BAD_TEXTS} == names - {"ignore"}  # any string is a pattern


@pytest.mark.parametrize(("key", "given", "expected"), GOOD_KEYWORDS)
def test_good_keyword(key: str, given: object, expected: object) -> None:
    assert getattr(load({}, **{key: given}), key) == expected


@pytest.mark.parametrize(("key", "given", "expected"), GOOD_TEXTS)
def test_good_environment_variable(key: str, given: str, expected: object) -> None:
    assert getattr(load({"JOBMETRICS_" + key.upper(): given}), key) == expected


@pytest.mark.parametrize(("key", "given", "expected"), GOOD_TOML)
def test_good_toml_value(tmp_path: Path, key: str, given: str, expected: object) -> None:
    assert getattr(load(toml(tmp_path, f"{key} = {given}\n")), key) == expected


@pytest.mark.parametrize(("key", "given", "allowed"), BAD_KEYWORDS)
def test_bad_keyword_is_refused_naming_key_value_and_what_is_allowed(key: str, given: object, allowed: str) -> None:
    message = refusal({}, **{key: given})
    assert message.startswith(f"{key}={given!r} is not allowed; it takes ")
    assert allowed in message


@pytest.mark.parametrize(("key", "given", "allowed"), BAD_TEXTS)
def test_a_bad_environment_variable_is_refused_by_name(key: str, given: str, allowed: str) -> None:
    variable = "JOBMETRICS_" + key.upper()
    message = refusal({variable: given})
    assert message.startswith(f"{variable}={given!r} is not allowed; it takes ")
    assert allowed in message


@pytest.mark.parametrize(("key", "given", "allowed"), BAD_TOML)
def test_bad_toml_value_is_refused_naming_the_file(tmp_path: Path, key: str, given: str, allowed: str) -> None:
    environ = toml(tmp_path, f"{key} = {given}\n")
    message = refusal(environ)
    assert message.startswith(f"{key} (in {environ['JOBMETRICS_CONFIG']})=")
    assert allowed in message


def test_unknown_keyword_is_refused_with_the_known_ones() -> None:
    assert refusal({}, directory="/x") == f"unknown setting directory; allowed are {', '.join(settings.known())}"


# As Kubernetes sets them in every pod for a Service called jobmetrics.
SERVICE_LINKS = {
    "JOBMETRICS_PORT": "tcp://10.0.0.1:9909",
    "JOBMETRICS_PORT_9909_TCP_ADDR": "10.0.0.1",
    "JOBMETRICS_SERVICE_HOST": "10.0.0.1",
}


def test_unknown_environment_variables_change_nothing_and_are_reported() -> None:
    assert load({**SERVICE_LINKS, "JOBMETRICS_NAMESPACE": "acme"}) == load({}, namespace="acme")
    read, findings = settings.read(SERVICE_LINKS)
    assert (read, findings.errors, findings.unknown) == (Settings(), [], sorted(SERVICE_LINKS))
    line = findings.unknown_line()
    assert line.startswith("JOBMETRICS_PORT, JOBMETRICS_PORT_9909_TCP_ADDR, JOBMETRICS_SERVICE_HOST are not settings")
    assert "the settings are JOBMETRICS_CONFIG, JOBMETRICS_DIR, " in line
    assert "10.0.0.1" not in line, "a value may be a secret"


def test_environment_variable_in_lower_case_is_not_a_setting() -> None:
    read, findings = settings.read({"JOBMETRICS_dir": "/x"})
    assert (read.dir, findings.unknown) == (settings.default_dir(), ["JOBMETRICS_dir"])
    assert findings.unknown_line().startswith("JOBMETRICS_dir is not a setting and is ignored; ")


@pytest.mark.parametrize(("key", "given", "allowed"), BAD_TEXTS)
def test_a_bad_environment_variable_is_ignored_and_reported(key: str, given: str, allowed: str) -> None:
    variable = "JOBMETRICS_" + key.upper()
    read, findings = settings.read({"JOBMETRICS_PROPAGATE_ERRORS": "true", variable: given})
    assert getattr(read, key) == getattr(Settings(), key)
    assert read.propagate_errors == (key != "propagate_errors"), "the others count"
    (line,) = findings.errors
    assert line.startswith(f"{variable}={given!r} is not allowed; it takes ")
    assert allowed in line


@pytest.mark.parametrize(("key", "given", "allowed"), BAD_TOML)
def test_a_bad_toml_value_is_ignored_and_reported(tmp_path: Path, key: str, given: str, allowed: str) -> None:
    environ = toml(tmp_path, f"{key} = {given}\n" + ("" if key == "max_labels" else "max_labels = 3\n"))
    read, findings = settings.read(environ)
    assert getattr(read, key) == getattr(Settings(), key)
    assert read.max_labels == (Settings.max_labels if key == "max_labels" else 3), "the others count"
    (line,) = findings.errors
    assert line.startswith(f"{key} (in {environ['JOBMETRICS_CONFIG']})=")
    assert allowed in line


def test_a_good_value_of_the_file_replaces_a_bad_one_of_the_environment(tmp_path: Path) -> None:
    environ = toml(tmp_path, "max_series = 7\n")
    assert settings.read({**environ, "JOBMETRICS_MAX_SERIES": "many"})[0].max_series == 7


@pytest.mark.parametrize("text", ["dir /run\n", "directory = '/x'\n", None])
def test_bad_file_leaves_the_environment_active(tmp_path: Path, text: str | None) -> None:
    environ = toml(tmp_path, text) if text else {"JOBMETRICS_CONFIG": str(tmp_path / "none")}
    read, findings = settings.read({**environ, "JOBMETRICS_NAMESPACE": "acme"})
    assert (read, len(findings.errors)) == (load({}, namespace="acme"), 1)


def test_bad_keyword_is_refused_whatever_else_is_wrong() -> None:
    with pytest.raises(SettingsError, match=r"^max_series=0 "):
        settings.read({"JOBMETRICS_LISTEN": "x"}, max_series=0)


def test_unknown_toml_key_is_refused_naming_the_file(tmp_path: Path) -> None:
    environ = toml(tmp_path, "directory = '/x'\n")
    message = refusal(environ)
    assert message.startswith(f"unknown setting directory (in {environ['JOBMETRICS_CONFIG']}); allowed are dir, ")


def test_a_keyword_overrides_the_environment() -> None:
    assert load({"JOBMETRICS_NAMESPACE": "fromenv"}, namespace="keyword").namespace == "keyword"


def test_the_environment_overrides_the_file(tmp_path: Path) -> None:
    environ = toml(tmp_path, "namespace = 'file'\n")
    assert load({**environ, "JOBMETRICS_NAMESPACE": "fromenv"}).namespace == "fromenv"


def test_other_settings_of_the_file_stay_with_a_keyword(tmp_path: Path) -> None:
    loaded = load(toml(tmp_path, "max_series = 7\nnamespace = 'file'\n"), namespace="keyword")
    assert (loaded.max_series, loaded.namespace) == (7, "keyword")


def test_a_bad_value_in_the_environment_is_refused_even_if_overridden() -> None:
    assert refusal({"JOBMETRICS_MAX_SERIES": "x"}, max_series=5).startswith("JOBMETRICS_MAX_SERIES='x'")


def test_variables_of_the_commands_are_not_settings() -> None:
    findings = settings.Findings()
    environ = {"JOBMETRICS_EXPORTER_X": "y", "HOME": "/"}
    assert (from_environment(environ, findings), findings.unknown, findings.errors) == ({}, [], [])


def test_empty_config_variable_means_no_file() -> None:
    assert load({"JOBMETRICS_CONFIG": ""}) == Settings()


def test_missing_file_is_one_clear_error(tmp_path: Path) -> None:
    path = str(tmp_path / "none.toml")
    message = refusal({"JOBMETRICS_CONFIG": path})
    assert message == f"JOBMETRICS_CONFIG={path!r} cannot be read: No such file or directory"


def test_a_file_that_is_not_toml_is_one_clear_error(tmp_path: Path) -> None:
    environ = toml(tmp_path, "dir /run\n")
    assert refusal(environ).startswith(f"JOBMETRICS_CONFIG={environ['JOBMETRICS_CONFIG']!r} is not valid TOML: ")


def test_a_file_that_is_not_utf8_is_one_clear_error(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_bytes(b"\xff\xfe\x00")
    assert refusal({"JOBMETRICS_CONFIG": str(file)}).startswith(f"JOBMETRICS_CONFIG={str(file)!r} is not valid TOML: ")


def test_defaults_are_as_documented() -> None:
    values: dict[str, Any] = dataclasses.asdict(load({}))
    assert values == {
        "dir": settings.default_dir(),
        "dir_group": None,
        "dir_owner": None,
        "app": "",
        "enabled": True,
        "buckets": {},
        "max_name_length": 128,
        "max_label_name_length": 64,
        "max_label_value_length": 256,
        "max_labels": 16,
        "max_series": 10_000,
        "ignore": (),
        "error_types": {},
        "propagate_errors": False,
        "log_level": "info",
        "namespace": "",
        "labels": {},
        "listen": "127.0.0.1:9909",
    }  # fmt: skip


def test_default_buckets_reach_from_milliseconds_to_hours() -> None:
    assert DEFAULT_BUCKETS == (
        0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 21600.0,
    )  # fmt: skip


def test_the_default_dir_is_in_shared_memory_and_private_to_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: path == "/dev/shm")
    monkeypatch.setattr(os, "getuid", lambda: 1234)
    assert settings.default_dir() == "/dev/shm/jobmetrics-1234"


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A user's default directory, in a folder of the test."""
    monkeypatch.setattr(os, "access", lambda *_: False)
    monkeypatch.setattr(tempfile, "gettempdir", lambda: str(tmp_path))
    return tmp_path / f"jobmetrics-{os.getuid()}"


def hold(path: Path, monkeypatch: pytest.MonkeyPatch, owner: int) -> None:
    """Let lstat show that a path belongs to another user."""
    path.mkdir()
    real = os.lstat

    def lstat(name: str) -> Any:
        found = real(name)
        return SimpleNamespace(st_uid=owner) if str(name) == str(path) else found

    monkeypatch.setattr(os, "lstat", lstat)


def test_a_default_dir_of_another_user_is_skipped(monkeypatch: pytest.MonkeyPatch, taken: Path) -> None:
    """Workers and exporter alike skip it, also those that start once the other directory is gone."""
    assert settings.default_dir() == str(taken)
    with monkeypatch.context() as other:
        hold(taken, other, os.geteuid() + 1)
        assert settings.default_dir() == f"{taken}~2"
        assert load({"JOBMETRICS_APP": "shop"}).dir == f"{taken}-shop"
        hold(Path(f"{taken}~2"), other, os.geteuid() + 1)
        assert settings.default_dir() == f"{taken}~3"
        Path(f"{taken}~3").mkdir()
        assert settings.default_dir() == f"{taken}~3"
    taken.rmdir()
    Path(f"{taken}~2").rmdir()
    assert settings.default_dir() == str(taken)
    Path(f"{taken}~2").mkdir()
    assert settings.default_dir() == f"{taken}~2", "the directory already in use"
    taken.mkdir()
    assert settings.default_dir() == str(taken)


def test_a_default_dir_without_a_free_name_is_refused_later(monkeypatch: pytest.MonkeyPatch, taken: Path) -> None:
    monkeypatch.setattr(os, "lstat", lambda _: SimpleNamespace(st_uid=os.geteuid() + 1))
    assert settings.default_dir() == str(taken)


def test_each_application_has_its_own_default_dir() -> None:
    assert load({"JOBMETRICS_APP": "shop"}).dir == f"{settings.default_dir()}-shop"
    assert load({}, app="shop").dir == f"{settings.default_dir()}-shop"
    assert load({"JOBMETRICS_APP": "shop", "JOBMETRICS_DIR": "/run/metrics"}).dir == "/run/metrics"
    assert load({"JOBMETRICS_APP": ""}).dir == settings.default_dir()


@pytest.mark.parametrize("name", ["../shop", "a/b", ".hidden", "-x", "a b", "x" * 65, "a\n"])
def test_an_application_name_with_path_parts_is_refused(name: str) -> None:
    assert "it takes 1 to 64 letters" in refusal({"JOBMETRICS_APP": name})


def test_default_dir_is_temporary_without_shared_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(os, "getuid", lambda: 1234)
    monkeypatch.setenv("XDG_RUNTIME_DIR", "/run/user/1234")
    assert settings.default_dir() == f"{tempfile.gettempdir()}/jobmetrics-1234"


def test_dir_with_a_tilde_is_the_users_home(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    assert load({}, dir="~/metrics").dir == "/home/someone/metrics"


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError, match=r"^cannot assign to field 'dir'$"):
        load({}).dir = "/elsewhere"
    with pytest.raises(dataclasses.FrozenInstanceError, match=r"^cannot delete field 'dir'$"):
        del load({}).dir


def test_settings_refuse_an_unknown_name() -> None:
    with pytest.raises(TypeError, match=r"^Settings has no directory, dirs$"):
        Settings(dirs="/x", directory="/y", dir="/z")


def test_settings_are_equal_when_all_of_them_are() -> None:
    assert Settings(max_labels=3) == Settings(max_labels=3) != Settings(max_labels=4)
    assert Settings() != vars(Settings())


def test_settings_are_copied_with_a_change() -> None:
    assert dataclasses.replace(Settings(dir="/x", max_labels=3), dir="/y") == Settings(dir="/y", max_labels=3)


def test_settings_show_their_values() -> None:
    shown = repr(Settings(max_labels=3, dir="/x"))
    assert shown.startswith("Settings(dir='/x', dir_group=None, dir_owner=None, app='', enabled=True, ")
    assert shown.endswith(
        ", max_labels=3, ignore=(), error_types={}, propagate_errors=False, log_level='info', "
        "namespace='', labels={}, listen='127.0.0.1:9909')"
    )


def test_no_setting_contains_a_secret() -> None:
    words = ("password", "secret", "token", "credential", "url")
    assert [name for name in settings.known() if any(word in name for word in words)] == []


def test_every_setting_has_a_help_text() -> None:
    assert [name for name, item in settings.known().items() if not item.metadata["help"]] == []


def test_parse_shows_a_value_under_the_name_it_was_given() -> None:
    with pytest.raises(SettingsError, match=r"^--listen='x' is not allowed; it takes HOST:PORT"):
        parse("listen", "x", shown_as="--listen")


def test_buckets_under_the_exact_name_override_an_earlier_pattern() -> None:
    assert buckets_for("jobs_x", {"jobs_*": (1.0,), "jobs_x": (2.0,)}) == (2.0,)


def test_the_first_matching_bucket_pattern_is_used() -> None:
    assert buckets_for("jobs_x", {"other": (9.0,), "jobs_*": (1.0,), "*": (2.0,)}) == (1.0,)


def test_a_metric_without_a_match_has_no_buckets() -> None:
    assert buckets_for("mine", {"jobs_*": (1.0,)}) is None


def test_active_reads_the_environment_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBMETRICS_NAMESPACE", "first")
    first = settings.active()
    monkeypatch.setenv("JOBMETRICS_NAMESPACE", "second")
    assert settings.active() is first
    assert first.namespace == "first"


def test_peek_reads_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBMETRICS_MAX_SERIES", "bad")
    assert settings.peek() is None


def test_configure_activates() -> None:
    configured = settings.configure(namespace="acme")
    assert settings.active() is configured


def test_configure_that_is_refused_leaves_what_was_active() -> None:
    before = settings.configure(namespace="acme")
    with pytest.raises(SettingsError):
        settings.configure(namespace="acme_")
    assert settings.peek() is before


def test_configure_uses_its_keywords_despite_a_bad_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JOBMETRICS_MAX_SERIES", "many")
    assert settings.configure(namespace="acme") == load({}, namespace="acme")
    assert len(settings.take_findings().errors) == 1
    assert settings.take_findings().errors == [], "reported once"


def test_use_none_resets(monkeypatch: pytest.MonkeyPatch) -> None:
    settings.configure(namespace="acme")
    settings.use(None)
    assert settings.active().namespace == ""
