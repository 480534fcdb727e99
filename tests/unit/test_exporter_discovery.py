"""Which collectors are made of which options."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
from collections.abc import Iterable, Sequence
from importlib.metadata import EntryPoint

import pytest

from jobmetrics.collecting import Collector, CollectorOptions, Reading, Target
from jobmetrics.errors import JobmetricsError, SettingsError
from jobmetrics.exporter import discovery
from jobmetrics.integration import ENTRY_POINT_GROUP, Option, System

RQ = CollectorOptions(rq_urls=(Target("main", "redis://localhost:1"),))


class Silent:
    """A third party's collector."""

    name = "third"
    broker = "b"

    def collect(self) -> Sequence[Reading]:
        return []

    def close(self) -> None: ...


def third_party(options: CollectorOptions) -> Iterable[Collector]:
    yield Silent()


def twins(options: CollectorOptions) -> Iterable[Collector]:
    return [Silent(), Silent()]


def broken(options: CollectorOptions) -> Iterable[Collector]:
    raise KeyError("secret")


def missing(options: CollectorOptions) -> Iterable[Collector]:
    raise ModuleNotFoundError("no module", name="no_such_module")


THIRD = System("third", collectors=third_party)
TWINS = System("twins", collectors=twins)
BROKEN = System("bad", collectors=broken)
UNIMPORTABLE = System("bad", collectors=missing)
ASKED = System(
    "rq", requirement="jobmetrics[rq]", options=[Option("rq_url", "URL", "", repeatable=True)], collectors=missing
)
NO_SYSTEM = "no system"


def install(monkeypatch: pytest.MonkeyPatch, **entries: str) -> None:
    found = [EntryPoint(name, value, ENTRY_POINT_GROUP) for name, value in entries.items()]
    monkeypatch.setattr(
        "importlib.metadata.entry_points", lambda group: [each for each in found if group == each.group]
    )


def test_nothing_asked_for_is_nothing_made_and_nothing_imported() -> None:
    code = (
        "import sys; from jobmetrics.collecting import CollectorOptions; from jobmetrics.exporter import discovery;"
        "assert discovery.find(CollectorOptions()) == [];"
        "print(sorted({'celery', 'kombu', 'redis', 'rq'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_is_asked_for_is_found_by_entry_point() -> None:
    options = CollectorOptions(
        celery_brokers=(Target("main", "redis://localhost:1"), Target("other", "redis://localhost:2")),
        rq_urls=(Target("main", "redis://localhost:1"),),
    )
    found = discovery.find(options)
    assert [(collector.name, collector.broker) for collector in found] == [
        ("celery", "main"),
        ("celery", "other"),
        ("rq", "main"),
    ]
    for collector in found:
        collector.close()


def test_third_parties_can_add_collectors(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, third=f"{__name__}:THIRD")
    assert [collector.name for collector in discovery.find(CollectorOptions())] == ["third"]


@pytest.mark.parametrize(
    "value",
    [f"{__name__}:{name}" for name in ("BROKEN", "UNIMPORTABLE", "NO_SYSTEM")] + ["no_such_module:x", "os:no_such"],
)
def test_a_third_party_that_breaks_is_left_out_and_logged(
    value: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    install(monkeypatch, bad=value, third=f"{__name__}:THIRD")
    with caplog.at_level(logging.WARNING):
        assert [collector.name for collector in discovery.find(CollectorOptions())] == ["third"]
    assert re.search("(job system|collectors of) bad cannot be ", caplog.text)
    assert "secret" not in caplog.text


def test_what_is_asked_for_and_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    with pytest.raises(SettingsError, match="no installed job system has the option rq_urls"):
        discovery.find(RQ)
    install(monkeypatch, rq=f"{__name__}:ASKED")
    with pytest.raises(JobmetricsError, match=r"needs no_such_module; pip install 'jobmetrics\[rq\]'"):
        discovery.find(RQ)


def test_brokers_of_the_same_name_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch, third=f"{__name__}:TWINS")
    with pytest.raises(SettingsError, match="two third brokers are named 'b'"):
        discovery.find(CollectorOptions())


@pytest.mark.parametrize(
    "options",
    [
        CollectorOptions(celery_queues=("q",)),
        CollectorOptions(rq_queues=("q",)),
        CollectorOptions(celery_app="no_such_module:app"),
        CollectorOptions(celery_app="os:path"),
        *(
            CollectorOptions(celery_brokers=(Target("default", url),))
            for url in (
                "foo://:secret@h",
                "redis://:secret@h:x",
                "redis://:sec/secret@h",
                "redis://h/secret",
                "a.b://h",
            )
        ),
        *(
            CollectorOptions(rq_urls=(Target("default", url),))
            for url in ("amqp://:secret@h", "redis://:secret@h:x", "redis://:sec/secret@h", "redis://h/x")
        ),
    ],
)
def test_options_that_cannot_work_are_refused_before_anything_starts(options: CollectorOptions) -> None:
    with pytest.raises(SettingsError) as refused:
        discovery.find(options)
    message = str(refused.value)
    assert "--celery" in message or "--rq" in message
    assert "\n" not in message
    assert ":secret" not in message
    assert "sec/" not in message
