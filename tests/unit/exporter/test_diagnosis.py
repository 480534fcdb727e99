"""The findings of `jobmetrics check` about the contents of a directory."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from jobmetrics import recorder
from jobmetrics.collector_api import CollectorOptions
from jobmetrics.events import SUCCESS, Ended, Job, Started
from jobmetrics.exporter import diagnosis
from jobmetrics.exporter.app import build
from jobmetrics.families import COUNTER, DROPPED_SERIES, Family
from jobmetrics.findings import NOTE, OK, PROBLEM, Finding
from jobmetrics.instruments import BoundCounter
from jobmetrics.integration import Recorded, System, Systems
from jobmetrics.registry.read.snapshot import SnapshotReader
from jobmetrics.registry.write.writer import Writer
from jobmetrics.settings import Settings, load
from tests.support.readings import reader


def ran(system: str, job_type: str, ready_at: float | None) -> None:
    execution = recorder.default().started(Started(Job(system, job_type, "q"), "1", ready_at))
    assert execution is not None
    recorder.default().ended(execution, Ended(SUCCESS))


def notes(directory: Path) -> list[str]:
    reader = SnapshotReader(str(directory))
    try:
        return [finding.text for finding in diagnosis.contents(reader.read()) if finding.state == NOTE]
    finally:
        reader.close()


def test_celery_jobs_without_any_known_wait_have_producers_that_are_not_instrumented(
    active_settings: Settings, registry_dir: Path
) -> None:
    for number in range(4):
        ran("celery", f"app.bare{number}", None)
    ran("celery", "app.stamped", 1.0)
    ran("rq", "app.rq", None)
    ran("python", "app.plain", None)
    (note,) = notes(registry_dir)
    assert note.startswith("the producers of 4 Celery job types are not instrumented: ")
    assert note.endswith(": waits unknown for app.bare0, app.bare1, app.bare2, ...")


def test_producers_that_stamp_their_messages_are_not_mentioned(active_settings: Settings, registry_dir: Path) -> None:
    ran("celery", "app.stamped", 1.0)
    ran("celery", "app.stamped", None)  # the wait of a redelivery is unknown
    assert notes(registry_dir) == []


def test_series_near_or_beyond_the_limit_name_the_metric_with_most(registry_dir: Path) -> None:
    writer = Writer(Settings(dir=str(registry_dir), max_series=20))
    orders, visits = (Family(name, COUNTER, "", ("user",)) for name in ("shop_orders_total", "shop_visits_total"))
    for number in range(9):
        BoundCounter(writer, orders, (str(number),)).inc()
    remedy = "find its label with too many values, or raise max_series; then run jobmetrics prune"

    def problems() -> list[Finding]:
        with reader(registry_dir) as opened:
            return [each for each in diagnosis.contents(opened.read()) if "series" in each.text]

    assert [each.state for each in problems()] == [OK]
    for number in range(12):
        BoundCounter(writer, visits, (str(number),)).inc()
    BoundCounter(writer, DROPPED_SERIES, ()).inc(float(writer.take_dropped_series()))
    near, beyond = problems()
    assert (near.state, near.remedy) == (beyond.state, beyond.remedy) == (PROBLEM, remedy)
    assert near.text == "20 of 20 series are used: shop_visits_total has most, 10 (50% of the limit)"
    assert beyond.text == "3 series beyond the limit: shop_visits_total has most, 10 (50% of the limit)"


def test_metrics_that_cannot_be_shown_are_a_problem(registry_dir: Path) -> None:
    """Also with a namespace, which is part of every metric's name."""
    settings = load({}, dir=str(registry_dir), namespace="acme")
    writer = Writer(settings)
    BoundCounter(writer, Family("shop_rows_total", COUNTER, ""), ()).inc()
    exporter = build(settings, CollectorOptions())
    try:
        assert list(diagnosis.exposition(exporter.scrape.collect(), settings)) == []
        BoundCounter(writer, Family("two words", COUNTER, ""), ()).inc()
        (found,) = diagnosis.exposition(exporter.scrape.collect(), settings)
    finally:
        exporter.close()
    assert (found.state, found.text) == (PROBLEM, "1 metric cannot be shown and is left out")


def test_checks_of_a_job_system_that_fail_are_a_problem(
    active_settings: Settings, registry_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(recorded: Recorded) -> Iterator[Finding]:
        yield Finding(NOTE, "not shown")
        raise KeyError("secret")

    def exits(recorded: Recorded) -> Iterator[Finding]:
        raise SystemExit("secret")

    def returns_texts(recorded: Recorded) -> Any:
        return ["not shown"]

    systems = Systems(
        (
            System("broken", checks=fails),
            System("broken_too", checks=exits),
            System("broken_also", checks=returns_texts),
            System("silent"),
        ),
        (),
    )
    monkeypatch.setattr(diagnosis, "find_systems", lambda: systems)
    ran("python", "app.plain", None)
    with reader(registry_dir) as opened:
        found = [each for each in diagnosis.contents(opened.read()) if "broken" in each.text or "shown" in each.text]
    assert found == [
        Finding(PROBLEM, "the checks of broken failed: KeyError", "update its package"),
        Finding(PROBLEM, "the checks of broken_too failed: SystemExit", "update its package"),
        Finding(PROBLEM, "the checks of broken_also failed: TypeError", "update its package"),
    ]


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"-ERR unknown command\r\n", (PROBLEM, "no exporter answers at {url}")),
        (b"", (NOTE, "the server at {url} may use TLS: not checked")),
        (b"HTTP/1.0 401 Unauthorized\r\n\r\n", (NOTE, "the server at {url} asks for a password: not checked")),
        (b"HTTP/1.0 200 OK\r\n\r\nhi", (PROBLEM, "the server at {url} is not an exporter and has none at /metrics")),
        (
            b"HTTP/1.0 200 OK\r\n\r\n<title>jobmetrics</title> <code>/of/this</code>",
            (OK, "the exporter at {url} reads this directory"),
        ),
    ],
)
def test_the_server_at_the_exporters_address_is_described(
    answer: bytes, expected: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it answers; the proxy of the environment is not used."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:1")

    def serve() -> None:
        while True:
            connection, _ = listening.accept()
            with connection:
                if not connection.recv(4096):
                    return  # the end of the test
                connection.sendall(answer)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve)
        thread.start()
        address = "{}:{}".format(*listening.getsockname())
        try:
            (found,) = diagnosis.exporter(load({}, dir="/of/this", listen=address))
        finally:
            socket.create_connection(listening.getsockname()).close()
            thread.join()
    assert (found.state, found.text) == (expected[0], expected[1].format(url=f"http://{address}/"))
