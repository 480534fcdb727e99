"""Targets and their URLs: which are accepted, which are refused, and which parts are never shown."""

from __future__ import annotations

import ast
from pathlib import Path
from types import ModuleType

import pytest

from jobmetrics import collector_api, integration
from jobmetrics.collector_api import CollectorOptions, Target, WrongTypes, safe_url, without_secrets
from jobmetrics.errors import SettingsError


@pytest.mark.parametrize(
    ("text", "name", "url"),
    [
        ("redis://h:1/0", "default", "redis://h:1/0"),
        ("main=redis://h", "main", "redis://h"),
        ("a-b_2=amqp://u:p@h//", "a-b_2", "amqp://u:p@h//"),
        ("redis://h/0?ssl_cert_reqs=none", "default", "redis://h/0?ssl_cert_reqs=none"),
        ("x=redis://h/0?a=b=c", "x", "redis://h/0?a=b=c"),
        ("redis://:p=q@h/0", "default", "redis://:p=q@h/0"),
        ("redis+socket:///run/redis.sock", "default", "redis+socket:///run/redis.sock"),
    ],
)
def test_the_name_comes_before_the_first_equals_sign_unless_it_is_a_url(text: str, name: str, url: str) -> None:
    assert Target.parse(text, "--rq-url") == Target(name, url)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "h:6379",
        "redis:h",
        "=redis://h",
        "Main=redis://h",
        "a b=redis://h",
        "x=",
        "x=y",
        "redis://a b",
        "://h",
        "1://h",
    ],
)
def test_anything_else_is_refused_naming_the_option(text: str) -> None:
    with pytest.raises(SettingsError, match=r"^--rq-url: "):
        Target.parse(text, "--rq-url")


@pytest.mark.parametrize(
    "url",
    [
        "redis://:secret@h:1/0",
        "redis://secret@h",
        "redis://user:secret@h/0",
        "redis://:sec/secret@h",
        "redis://:a?secret@h",
        "redis://:a@secret@h",
        "redis://:a#secret@h",
        "redis://h/0?password=secret",
        "redis://h/0#secret",
        "redis://:secret",
        "sentinel://:secret@a;sentinel://:secret@b",
        "sentinel://:x;secret@a",
        "secret",
        "redis:secret@h",
    ],
)
def test_no_part_of_a_password_is_ever_shown(url: str) -> None:
    assert "secret" not in safe_url(url)
    with pytest.raises(SettingsError) as refused:
        Target.parse(f"x y={url} ", "--rq-url")
    assert "secret" not in str(refused.value)


def test_the_address_is_still_shown() -> None:
    assert safe_url("redis://:pw@h:1/2?a=b") == "redis://***@h:1/2"
    assert safe_url("redis://[::1]:1/2") == "redis://[::1]:1/2"
    assert safe_url("sentinel://:pw@a:1;sentinel://b:2") == "sentinel://***@a:1;sentinel://b:2"
    assert Target("main", "redis+socket:///run/redis.sock").safe_url == "redis+socket:///run/redis.sock"
    assert Target("main", "rediss://h").scheme == "rediss"


def test_messages_lose_credentials_and_given_words_and_become_one_line() -> None:
    assert without_secrets("cannot reach redis://u:p@w@h/0\n  twice") == "cannot reach redis://***@h/0 twice"
    assert without_secrets("bad password 'p.w+'", "p.w+", None, "") == "bad password '***'"
    assert without_secrets("unexpected", "p") == "unexpected"


def test_options_of_job_systems_are_keywords() -> None:
    options = CollectorOptions(timeout=2.0, rq_queues=("q",))
    assert (options.timeout, options.get("rq_queues"), options.get("rq_urls", ())) == (2.0, ("q",), ())


def test_queues_with_a_key_of_another_type_are_left_out_and_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    wrong_types = WrongTypes("redis://host:6379/0")
    wrong = ValueError("WRONGTYPE")
    for answer in (1, wrong):
        assert wrong_types.leave_out({"a": [1, 2], "b": [answer, wrong]}) == {"a": [1, 2]}
    assert wrong_types.leave_out({"a": [1], "b": [1]}) == {"a": [1], "b": [1]}
    assert wrong_types.leave_out({}) == {}
    assert wrong_types.leave_out({"a": [1], "b": [wrong]}) == {"a": [1]}
    line = "jobmetrics: redis://host:6379/0: queue 'b' is left out: a key of it has a wrong type"
    assert [record.getMessage() for record in caplog.records] == [line, line]


def test_wrong_types_in_every_queue_are_an_error() -> None:
    first = ValueError("WRONGTYPE of a")
    with pytest.raises(ValueError, match="of a"):
        WrongTypes("redis://host").leave_out({"a": [1, first], "b": [ValueError("WRONGTYPE of b")]})


@pytest.mark.parametrize("module", [collector_api, integration])
def test_job_systems_of_the_package_use_public_names_as_others_do(module: ModuleType) -> None:
    root = Path(collector_api.__file__).parent
    for path in (*root.glob("celery/*.py"), *root.glob("rq/*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module == module.__name__:
                assert {name.name for name in node.names} <= set(module.__all__), path
