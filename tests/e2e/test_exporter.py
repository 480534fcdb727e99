"""The exporter as operators run it: a real process, a real Redis, a registry directory in use."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from redis import Redis

from tests.e2e.exporters import (
    COMMAND,
    JOB,
    LIMIT,
    OPENMETRICS,
    Exporter,
    Exposed,
    complaint,
    recording,
    run,
    run_inside,
    running,
)
from tests.support import servers
from tests.support.readings import until


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "exporter.log"


# ------------------------------------------------------------------ serving


def test_recorded_metrics_are_served_as_text_and_as_openmetrics(registry_dir: Path, log: Path) -> None:
    with running(registry_dir, log) as exporter, recording(registry_dir):
        text = exporter.scrape()
        assert text("jobs_total", **JOB, status="success") == 2
        assert text("jobs_duration_seconds_count", **JOB) == 2
        assert text("jobs_duration_seconds_bucket", **JOB, le="0.025") == 1
        assert text("jobs_duration_seconds_bucket", **JOB, le="+Inf") == 2
        assert text("jobs_duration_seconds_sum", **JOB) == pytest.approx(4.02)
        assert text("jobs_active", **JOB) == 1
        assert text("jobs_active_oldest_timestamp_seconds", **JOB) == 1700000000.0
        assert text("jobmetrics_slots", state="live") == 1
        assert text("jobmetrics_directory_up") == 1
        assert text("jobmetrics_series_limit") == 10_000

        status, headers, body = exporter.ask("/metrics", accept=OPENMETRICS)
        assert status == 200
        assert headers["Content-Type"].startswith("application/openmetrics-text; version=1.0.0; charset=utf-8")
        opened = Exposed(body, openmetrics=True)
        volatile = {"jobmetrics_scrape_duration_seconds"}
        # Both formats write the bounds alike, and both parsers read names with suffixes.
        assert {key: value for key, value in opened.values.items() if key[0] not in volatile} == {
            key: value for key, value in text.values.items() if key[0] not in volatile
        }


def test_active_jobs_of_a_killed_process_are_gone_and_its_counts_stay(registry_dir: Path, log: Path) -> None:
    with running(registry_dir, log) as exporter, recording(registry_dir) as worker:
        assert exporter.scrape()("jobs_active", **JOB) == 1
        worker.kill()
        worker.wait()
        text = exporter.scrape()
        assert text("jobs_active", **JOB) == 0
        assert text("jobs_active_oldest_timestamp_seconds", **JOB) is None
        assert text("jobs_total", **JOB, status="success") == 2
        assert (text("jobmetrics_slots", state="live"), text("jobmetrics_slots", state="free")) == (0, 1)


def test_it_may_start_before_the_directory_exists(tmp_path: Path, log: Path) -> None:
    directory = tmp_path / "later"
    with running(directory, log) as exporter:
        text = exporter.scrape()
        assert text("jobmetrics_directory_up") == 0
        assert not {name for name in text.names() if name.startswith("jobs_")}
        assert "jobmetrics_slots" not in text.names(), "an unknown value is absent, not 0"
        assert "jobmetrics_build_info" in text.names()
        status, _, body = exporter.ask("/readyz")
        assert (status, body) == (
            503,
            f"not ready: {directory} does not exist yet; the first worker that records creates it\n",
        )
        assert exporter.ask("/healthz")[::2] == (200, "ok\n")
        assert not directory.exists(), "readers only read"
        with recording(directory):
            text = exporter.scrape()
            assert text("jobmetrics_directory_up") == 1
            assert text("jobs_total", **JOB, status="success") == 2
            assert exporter.ask("/readyz")[::2] == (200, "ready\n")
        shutil.rmtree(directory)
        assert exporter.scrape()("jobmetrics_directory_up") == 0
        with recording(directory):
            assert exporter.scrape()("jobs_total", **JOB, status="success") == 2


def test_a_directory_that_becomes_unsafe_while_serving_is_reported(registry_dir: Path, log: Path) -> None:
    with running(registry_dir, log) as exporter:
        registry_dir.chmod(0o777)
        assert exporter.scrape()("jobmetrics_directory_up") == 0
        status, _, body = exporter.ask("/readyz")
        assert status == 503
        assert "may be written by anyone" in body
        assert exporter.log.count("may be written by anyone") == 1
        registry_dir.chmod(0o700)
        assert exporter.scrape()("jobmetrics_directory_up") == 1


def test_two_exporters_on_one_directory_serve_the_same(registry_dir: Path, tmp_path: Path) -> None:
    with (
        running(registry_dir, tmp_path / "one") as one,
        running(registry_dir, tmp_path / "two") as two,
        recording(registry_dir),
    ):
        for exporter in (one, two):
            text = exporter.scrape()
            assert text("jobs_total", **JOB, status="success") == 2
            assert text("jobs_active", **JOB) == 1
        assert one.stop()[0] == 0
        assert two.scrape()("jobs_active", **JOB) == 1


def test_prefix_and_constant_labels(registry_dir: Path, log: Path) -> None:
    options = ("--namespace", "acme", "--label", "env=a=b", "--label", "site=x,y")
    with running(registry_dir, log, *options) as exporter, recording(registry_dir):
        text = exporter.scrape()
        assert text("acme_jobs_total", **JOB, status="success", env="a=b", site="x,y") == 2
        assert all(name.startswith("acme_") for name in text.names())
        assert all({"env", "site"} <= {label for label, _ in labels} for _, labels in text.values)


def test_pages_and_methods_of_an_empty_directory_and_the_one_line_of_log(registry_dir: Path, log: Path) -> None:
    with running(registry_dir, log) as exporter:
        text = exporter.scrape()
        assert text("jobmetrics_directory_up") == 1
        assert text("jobmetrics_slots", state="live") == 0
        assert exporter.ask("/readyz")[0] == 200
        status, headers, body = exporter.ask("/")
        assert (status, headers["Content-Type"]) == (200, "text/html; charset=utf-8")
        assert str(registry_dir) in body
        status, headers, body = exporter.ask("/metrics", "HEAD")
        assert (status, body) == (200, "")
        assert int(headers["Content-Length"]) > 1000
        assert exporter.ask("/metrics/x")[0] == 404
        assert exporter.ask("/metrics", "POST")[0] == 405
        assert exporter.stop()[0] == 0
        assert exporter.log == f"jobmetrics exporter: serving {exporter.url}/metrics from {registry_dir}\n"


def test_promtool_accepts_the_exposition(registry_dir: Path, redis_url: str, log: Path) -> None:
    promtool = servers.program("promtool")
    with (
        running(registry_dir, log, "--rq-url", redis_url, "--celery-broker", redis_url) as exporter,
        recording(registry_dir),
    ):
        until(lambda: exporter.scrape()("jobmetrics_collector_up", collector="rq", broker="default") == 1, "a reading")
        _, _, text = exporter.ask("/metrics")
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_end_it_also_while_a_broker_hangs_and_a_client_idles(
    number: int, registry_dir: Path, log: Path
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        broker = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
        options = ("--rq-url", broker, "--celery-broker", broker, "--timeout", "600")
        with running(registry_dir, log, *options) as exporter:
            place = urlsplit(exporter.url)
            with socket.create_connection((place.hostname, place.port)) as idle:
                idle.sendall(b"GET /metrics HT")
                exporter.scrape()
                code, _ = exporter.stop(number)
                assert (code, exporter.log.count("\n")) == (0, 1), exporter.log


# ------------------------------------------------------------------ brokers


def test_depths_of_both_systems(registry_dir: Path, redis_url: str, log: Path) -> None:
    with Redis.from_url(redis_url) as client:
        client.lpush("mail", "a", "b")
        client.lpush("mail\x06\x163", "c")
        client.sadd("rq:queues", "rq:queue:high", "rq:queue:low")
        client.lpush("rq:queue:high", "a", "b", "c", "d")
    variables = {
        "JOBMETRICS_EXPORTER_CELERY_BROKER": redis_url,
        "JOBMETRICS_EXPORTER_RQ_URL": f"a={redis_url} b={redis_url}",
    }
    with running(registry_dir, log, "--celery-queue", "mail", "--celery-queue", "empty", **variables) as exporter:
        until(lambda: exporter.scrape()("jobmetrics_collector_up", collector="rq", broker="b") == 1, "the last reading")
        until(
            lambda: exporter.scrape()("jobmetrics_collector_up", collector="celery", broker="default") == 1, "Celery's"
        )
        text = exporter.scrape()
        depth = {
            tuple(dict(labels)[name] for name in ("system", "broker", "queue_name")): value
            for (name, labels), value in text.values.items()
            if name == "jobs_queue_depth"
        }
        assert depth == {
            ("celery", "default", "mail"): 3,
            ("celery", "default", "empty"): 0,
            ("rq", "a", "high"): 4,
            ("rq", "a", "low"): 0,
            ("rq", "b", "high"): 4,
            ("rq", "b", "low"): 0,
        }
        last = text("jobmetrics_collector_last_success_timestamp_seconds", collector="rq", broker="a")
        assert last is not None
        assert abs(last - time.time()) < LIMIT


def test_a_broker_may_be_down_at_the_start_and_later(
    registry_dir: Path, redis_server: servers.RedisServer, log: Path
) -> None:
    redis_server.kill()
    url = redis_server.url.replace("redis://", "redis://:hidden-word@")
    options = ("--celery-broker", url, "--celery-queue", "mail", "--rq-url", url, "--rq-queue", "high")
    systems = {"celery": "mail", "rq": "high"}

    def seen(exporter: Exporter) -> dict[str, tuple[float | None, float | None]]:
        text = exporter.scrape()
        return {
            system: (
                text("jobmetrics_collector_up", collector=system, broker="default"),
                text("jobs_queue_depth", system=system, broker="default", queue_name=queue),
            )
            for system, queue in systems.items()
        }

    down, up = dict.fromkeys(systems, (0, None)), dict.fromkeys(systems, (1, 1))

    def start() -> None:
        redis_server.start()
        with Redis.from_url(redis_server.url) as client:
            client.config_set("requirepass", "hidden-word")
        with Redis.from_url(url) as client:
            client.lpush("mail", "a")
            client.lpush("rq:queue:high", "a")

    with running(registry_dir, log, *options) as exporter, recording(registry_dir):
        until(lambda: seen(exporter) == down, "both to be down")
        assert exporter.scrape()("jobs_total", **JOB, status="success") == 2
        start()
        until(lambda: seen(exporter) == up, "both to be read")
        redis_server.kill()
        until(lambda: seen(exporter) == down, "both to be down again")
        start()
        until(lambda: seen(exporter) == up, "both to be read again")
        warnings = [line for line in exporter.log.splitlines() if "WARNING" in line]
        assert len(warnings) == 2, "one line per broker and minute"
        assert "hidden-word" not in exporter.log + exporter.ask("/")[2] + exporter.ask("/metrics")[2]
        assert exporter.stop()[0] == 0


def test_a_broker_that_hangs_does_not_delay_the_scrape(registry_dir: Path, log: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        options = ("--rq-url", f"redis://127.0.0.1:{silent.getsockname()[1]}/0", "--timeout", "600")
        with running(registry_dir, log, *options) as exporter, recording(registry_dir):
            text = exporter.scrape()  # answers long before the broker does
            assert text("jobs_total", **JOB, status="success") == 2
            assert text("jobmetrics_collector_up", collector="rq", broker="default") is None, "not known yet"


def test_a_transport_whose_queues_cannot_be_read_is_absent_with_a_reason(registry_dir: Path, log: Path) -> None:
    with running(registry_dir, log, "--celery-broker", "amqp://u:hidden-word@h//") as exporter:
        until(
            lambda: exporter.scrape()("jobmetrics_collector_up", collector="celery", broker="default") == 0,
            "the refusal",
        )
        assert "jobs_queue_depth" not in exporter.scrape().names()
        assert "amqp://***@h// cannot be read" in exporter.log
        assert "hidden-word" not in exporter.log


# ------------------------------------------------------------------ bad input


@pytest.mark.parametrize(
    ("variables", "options", "named"),
    [
        ({"JOBMETRICS_MAX_SERIES": "many"}, [], "JOBMETRICS_MAX_SERIES='many'"),
        ({"JOBMETRICS_CONFIG": "/no/such/file"}, [], "/no/such/file"),
        ({"JOBMETRICS_EXPORTER_RQ_URL": "redis://h:x"}, [], "--rq-url"),
        ({"JOBMETRICS_EXPORTER_TIMEOUT": "soon"}, [], "'soon' is not a valid float"),
        ({}, ["--listen", "here"], "--listen='here'"),
        ({}, ["--listen", "127.0.0.1:99999"], "99999"),
        ({}, ["--listen", "no-such-host.invalid:0"], "no-such-host.invalid"),
        ({}, ["--namespace", "9"], "--namespace='9'"),
        ({}, ["--label", "x"], "--label='x'"),
        ({}, ["--label", "system=x"], "'system'"),
        ({}, ["--log-level", "loud"], "--log-level='loud'"),
        ({}, ["--celery-broker", "localhost"], "--celery-broker"),
        ({}, ["--celery-broker", "foo://:hidden-word@h"], "kombu does not know"),
        ({}, ["--celery-broker", "redis://:hidden-word@h:port"], "--celery-broker"),
        ({}, ["--rq-url", "http://:hidden-word@h"], "--rq-url"),
        ({}, ["--rq-url", "Main=redis://:hidden-word@h"], "'Main'"),
        ({}, ["--rq-url", "redis://h", "--rq-url", "redis://g"], "two rq brokers"),
        ({}, ["--celery-app", "no_such_module:app"], "no_such_module"),
        ({}, ["--nonsense"], "--nonsense"),
    ],
)
def test_bad_input_is_one_clear_line(
    variables: dict[str, str], options: list[str], named: str, registry_dir: Path
) -> None:
    done = run_inside("exporter", "--listen", "127.0.0.1:0", "--dir", str(registry_dir), *options, variables=variables)
    line = complaint(done)
    assert named in line
    assert "hidden-word" not in line


# As Kubernetes sets them in every pod for Services called jobmetrics and jobmetrics-exporter.
SERVICE_LINKS = {
    f"{service}_{name}": value
    for service in ("JOBMETRICS", "JOBMETRICS_EXPORTER")
    for name, value in {
        "SERVICE_HOST": "10.0.0.1",
        "SERVICE_PORT": "9909",
        "PORT": "tcp://10.0.0.1:9909",
        "PORT_9909_TCP_ADDR": "10.0.0.1",
    }.items()
}


def test_unknown_variables_are_a_warning_for_exporter_and_worker(registry_dir: Path, log: Path) -> None:
    worker = "from jobmetrics import increment; increment('rows', 3)"
    environment = {**os.environ, **SERVICE_LINKS, "JOBMETRICS_DIR": str(registry_dir)}
    done = subprocess.run(
        [sys.executable, "-c", worker], env=environment, capture_output=True, text=True, check=True, timeout=LIMIT
    )
    (line,) = done.stderr.splitlines()
    assert "JOBMETRICS_SERVICE_HOST, JOBMETRICS_SERVICE_PORT are not settings and are ignored" in line
    with running(registry_dir, log, **SERVICE_LINKS) as exporter:
        assert exporter.scrape()("rows_total") == 3
        warnings = [line for line in exporter.log.splitlines() if "WARNING" in line]
    assert len(warnings) == 2
    assert "JOBMETRICS_PORT, " in warnings[0]
    assert "JOBMETRICS_EXPORTER_SERVICE_HOST, " in warnings[1]


def test_a_port_in_use_is_one_clear_line(registry_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = run("exporter", "--listen", address, "--dir", str(registry_dir))
        assert complaint(done, 1) == f"jobmetrics: cannot listen on {address}: the port is in use"


@pytest.mark.parametrize("command", [["exporter", "--listen", "127.0.0.1:0"], ["dump"]])
@pytest.mark.parametrize("kind", ["link", "file", "writable by all", "unreadable", "behind an unreadable one"])
def test_a_directory_that_may_not_be_read_is_one_clear_line(command: list[str], kind: str, tmp_path: Path) -> None:
    path = tmp_path / "registry"
    real = tmp_path / "real"
    real.mkdir(mode=0o700)
    if kind == "link":
        path.symlink_to(real)
    elif kind == "file":
        path.touch()
    else:
        path.mkdir()
        path.chmod(0o777 if kind == "writable by all" else 0)
    shown = path / "inner" if kind.startswith("behind") else path
    try:
        arguments = (*command, "--dir", str(shown))
        line = complaint(run(*arguments, limited=True) if "unreadable" in kind else run_inside(*arguments), 1)
    finally:
        if not path.is_symlink():
            path.chmod(0o700)
    assert str(path) in line


# ------------------------------------------------------------------ dump


def test_dump_prints_the_exposition_once(registry_dir: Path, redis_url: str) -> None:
    with Redis.from_url(redis_url) as client:
        client.lpush("rq:queue:high", "a", "b")
    with recording(registry_dir):
        done = run("dump", "--dir", str(registry_dir), "--rq-url", redis_url, "--rq-queue", "high")
    assert (done.returncode, done.stderr) == (0, "")
    text = Exposed(done.stdout)
    assert text("jobs_total", **JOB, status="success") == 2
    assert text("jobs_active", **JOB) == 1
    assert text("jobs_queue_depth", system="rq", broker="default", queue_name="high") == 2


def test_dump_of_a_missing_directory_is_one_clear_line(tmp_path: Path) -> None:
    assert str(tmp_path / "none") in complaint(run("dump", "--dir", str(tmp_path / "none")), 1)


def test_dump_into_a_pipe_that_is_closed_is_quiet(registry_dir: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    try:
        done = subprocess.run(
            [*COMMAND, "dump", "--dir", str(registry_dir)], stdout=write, stderr=subprocess.PIPE, text=True, check=False
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (0, "")
