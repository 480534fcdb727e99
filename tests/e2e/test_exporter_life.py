"""The exporter as a service: readiness, logs, its configuration file, memory, and third-party collectors."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from redis import Redis

from tests.e2e.exporters import JOB, LIMIT, Exporter, complaint, recording, run_inside, running
from tests.support import servers
from tests.support.readings import until
from tests.support.repetitions import sizes

MEGABYTE = 1_000_000


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "exporter.log"


# ------------------------------------------------------------------ systemd


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_systemd_is_notified_of_readiness_and_of_the_end(
    kind: str, registry_dir: Path, tmp_path: Path, log: Path
) -> None:
    name = str(tmp_path / "notify") if kind == "path" else f"@jobmetrics-test-{os.getpid()}-{time.monotonic_ns()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(name.replace("@", "\0"))
        manager.settimeout(LIMIT)
        with running(registry_dir, log, NOTIFY_SOCKET=name) as exporter:
            assert manager.recv(100) == b"READY=1"
            assert exporter.scrape()("jobmetrics_directory_up") == 1
            assert exporter.stop()[0] == 0
            assert manager.recv(100) == b"STOPPING=1"


def test_a_missing_notify_socket_does_not_stop_the_exporter(registry_dir: Path, tmp_path: Path, log: Path) -> None:
    with running(registry_dir, log, NOTIFY_SOCKET=str(tmp_path / "nobody")) as exporter:
        assert exporter.stop()[0] == 0


# ------------------------------------------------------------------ life cycle


@pytest.mark.full
@pytest.mark.serial
def test_it_exits_in_time_during_scrapes(registry_dir: Path, log: Path) -> None:
    with running(registry_dir, log) as exporter, socket.create_connection(exporter.address) as idle:
        idle.sendall(b"GET /metrics HT")
        connections = []
        for _ in range(20):
            connection = exporter.connect()
            connection.request("GET", "/metrics")
            connections.append(connection)
        code, seconds = exporter.stop()
        for connection in connections:
            connection.close()
        assert code == 0
        assert seconds < 2.0
        assert "Traceback" not in exporter.log


def test_a_directory_that_is_wiped_or_replaced_while_serving(registry_dir: Path, tmp_path: Path, log: Path) -> None:
    with running(registry_dir, log) as exporter:
        with recording(registry_dir):
            assert exporter.scrape()("jobs_total", **JOB, status="success") == 2
        for path in registry_dir.iterdir():
            path.unlink()
        assert "jobs_total" not in exporter.scrape().names()
        with recording(registry_dir):
            assert exporter.scrape()("jobs_total", **JOB, status="success") == 2
        other = tmp_path / "other"
        with recording(other), recording(other):
            shutil.rmtree(registry_dir)
            other.rename(registry_dir)
            assert exporter.scrape()("jobs_total", **JOB, status="success") == 4
            assert exporter.ask("/readyz")[0] == 200


def test_series_unchanged_for_a_long_time_are_hidden(registry_dir: Path, log: Path) -> None:
    with running(registry_dir, log, "--hide-after", str(0.5 / 86400)) as exporter, recording(registry_dir):
        assert exporter.scrape()("jobs_total", **JOB, status="success") == 2
        until(lambda: exporter.scrape()("jobs_total", **JOB, status="success") is None, "the series to be hidden")
        with recording(registry_dir):
            assert exporter.scrape()("jobs_total", **JOB, status="success") == 4, "shown again, and nothing was lost"


# ------------------------------------------------------------------ worker processes


WORKS = """
import sys
from jobmetrics import settings
from jobmetrics.families import JOBS
from jobmetrics.instruments import BoundCounter
from jobmetrics.registry.write.writer import Writer
writer = Writer(settings.load(dir=sys.argv[1]))
writer.describe(sys.argv[2], "worker", 4)
BoundCounter(writer, JOBS, (sys.argv[2], "t", "q", "success")).inc()
print("recorded", flush=True)
sys.stdin.read()
"""


@contextlib.contextmanager
def working(directory: Path, system: str, *before: str) -> Iterator[subprocess.Popen[str]]:
    """A worker process of a system; before: the beginning of its command."""
    with subprocess.Popen(
        [*before, sys.executable, "-c", WORKS, str(directory), system],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "recorded\n"
            yield process
        finally:
            process.kill()


def test_resident_memory_is_of_the_living_processes(registry_dir: Path, log: Path) -> None:
    def shown(system: str) -> float | None:
        return exporter.scrape()("jobs_worker_resident_memory_bytes", system=system)

    with running(registry_dir, log) as exporter:
        with working(registry_dir, "celery") as one, working(registry_dir, "celery") as two:
            with working(registry_dir, "rq") as other:
                real = psutil.Process(other.pid).memory_info().rss
                assert shown("rq") == pytest.approx(real, rel=0.1)
            real = sum(psutil.Process(each.pid).memory_info().rss for each in (one, two))
            assert shown("celery") == pytest.approx(real, rel=0.1)
            assert shown("rq") is None
        assert shown("celery") is None


def test_resident_memory_is_absent_for_another_pid_namespace(registry_dir: Path, log: Path) -> None:
    unshare = [servers.program("unshare"), "--pid", "--fork", "--kill-child"]
    if subprocess.run([*unshare, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this user may not make a pid namespace")
    with (
        running(registry_dir, log) as exporter,
        working(registry_dir, "rq", *unshare),
        working(registry_dir, "celery"),
    ):
        text = exporter.scrape()
        assert text("jobs_worker_resident_memory_bytes", system="rq") is None
        assert text("jobs_worker_resident_memory_bytes", system="celery") is not None
        assert text("jobs_total", system="rq", job_type="t", queue_name="q", status="success") == 1


# ------------------------------------------------------------------ logs


def test_json_logs_are_one_object_a_line(registry_dir: Path, log: Path) -> None:
    with running(registry_dir, log, "--log-format", "json", "--rq-url", "redis://:hidden-word@127.0.0.1:1") as exporter:
        until(lambda: "cannot be read" in exporter.log, "the warning")
        registry_dir.chmod(0o777)
        exporter.scrape()
        exporter.scrape()
        until(lambda: "may be written by anyone" in exporter.log, "the warning")
        registry_dir.chmod(0o700)
        assert exporter.stop()[0] == 0
        lines = [json.loads(line) for line in exporter.log.splitlines()]
    assert [line["level"] for line in lines].count("info") == 1
    assert all({"time", "level", "logger", "message"} == set(line) for line in lines)
    assert len(lines) == 3, "each event at most once a minute"
    assert "hidden-word" not in exporter.log


# ------------------------------------------------------------------ configuration file


def test_brokers_may_be_set_in_the_file(registry_dir: Path, tmp_path: Path, log: Path, redis_url: str) -> None:
    with Redis.from_url(redis_url) as client:
        client.lpush("rq:queue:high", "a")
    file = tmp_path / "jobmetrics.toml"
    file.write_text(
        f'namespace = "acme"\n[exporter]\nrq_url = ["main={redis_url}"]\nrq_queue = "high"\nrefresh = 0.1\n'
    )
    with running(registry_dir, log, JOBMETRICS_CONFIG=str(file)) as exporter:
        until(
            lambda: exporter.scrape()("acme_jobs_queue_depth", system="rq", broker="main", queue_name="high") == 1,
            "the reading",
        )


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[exporter]\nrq_ur = 'x'", "unknown key exporter.rq_ur"),
        ("exporter = 3", "exporter (in "),
        ("[exporter]\ntimeout = 'soon'", "'soon' is not a valid float"),
        ("[exporter]\nrq_url = ['http://:hidden-word@h']", "--rq-url"),
    ],
)
def test_an_error_in_the_file_is_one_clear_line(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "jobmetrics.toml"
    file.write_text(text)
    line = complaint(run_inside("exporter", "--listen", "127.0.0.1:0", variables={"JOBMETRICS_CONFIG": str(file)}))
    assert said in line
    assert "hidden-word" not in line


# ------------------------------------------------------------------ third parties

THIRD_PARTY = """
import time
from jobmetrics.collector_api import Reading
from jobmetrics.errors import CollectorError
from jobmetrics.families import JOBS_QUEUE_DEPTH
from jobmetrics.integration import System

class Tiny:
    name = "tiny"

    def __init__(self, broker):
        self.broker = broker

    def collect(self):
        if self.broker == "hangs":
            time.sleep(3600)
        if self.broker == "raises":
            raise RuntimeError("hidden-word")
        if self.broker == "nonsense":
            return [42]
        if self.broker == "exits":
            raise SystemExit(3)
        return [Reading(JOBS_QUEUE_DEPTH, ("tiny", self.broker, "q"), 7.0)]

    def close(self):
        pass

def collectors(options):
    return [Tiny(broker) for broker in ("good", "hangs", "raises", "nonsense", "exits")]

TINY = System("tiny", collectors=collectors)
"""


def test_a_third_party_collector_is_found_and_cannot_break_a_scrape(
    registry_dir: Path, tmp_path: Path, log: Path
) -> None:
    place = tmp_path / "installed"
    info = place / "tiny_collector-1.dist-info"
    info.mkdir(parents=True)
    (place / "tiny_collector.py").write_text(THIRD_PARTY)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny-collector\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[jobmetrics.systems]\ntiny = tiny_collector:TINY\n")
    with running(registry_dir, log, "--timeout", "0.3", PYTHONPATH=str(place)) as exporter:

        def up(broker: str) -> float | None:
            return exporter.scrape()("jobmetrics_collector_up", collector="tiny", broker=broker)

        until(lambda: up("good") == 1, "the good one")
        for broker in ("hangs", "raises", "nonsense", "exits"):
            until(lambda broker=broker: up(broker) == 0, f"the one that {broker}")  # type: ignore[misc]
        text = exporter.scrape()
        assert text("jobs_queue_depth", system="tiny", broker="good", queue_name="q") == 7
        assert [labels for name, labels in text.values if name == "jobs_queue_depth"] == [
            frozenset({"system": "tiny", "broker": "good", "queue_name": "q"}.items())
        ]
        page = exporter.ask("/")[2]
        assert "no answer within 0.3 s" in page
        assert "RuntimeError in the collector" in page
        assert "hidden-word" not in page + exporter.log
        assert exporter.stop()[0] == 0


# ------------------------------------------------------------------ many scrapes

FILLS = """
import os, sys, time
from jobmetrics import Histogram, settings
settings.configure(dir=sys.argv[1], propagate_errors=True)
processes, series = int(sys.argv[2]), int(sys.argv[3])
histogram = Histogram("work_seconds", "d", ["n"])
bound = [histogram.labels(str(number)) for number in range(series)]

def work(rounds):
    for number in range(rounds):
        for child in bound:
            child.observe(0.01 * number)
        time.sleep(0.02)
    os._exit(0)

def start(rounds):
    pid = os.fork()
    if pid == 0:
        work(rounds)
    return pid

alive = {start(10 + number) for number in range(processes)}
print("recorded", flush=True)
os.set_blocking(0, False)
while True:
    pid, _ = os.waitpid(-1, os.WNOHANG)
    if pid:
        alive.discard(pid)
        alive.add(start(20 + pid % 30))
    try:
        if not os.read(0, 1):
            break
    except BlockingIOError:
        pass
    time.sleep(0.01)
for pid in alive:
    os.kill(pid, 9)
    os.waitpid(pid, 0)
"""


def scrape_often(exporter: Exporter, directory: Path, processes: int, series: int, scrapes: int) -> None:
    """Scrape at full speed while workers start and exit; memory and descriptors do not grow."""
    with subprocess.Popen(
        [sys.executable, "-c", FILLS, str(directory), str(processes), str(series)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as worker:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "recorded\n"
        _scrape_often(exporter, scrapes)
        worker.communicate(timeout=LIMIT)


def _scrape_often(exporter: Exporter, scrapes: int) -> None:
    process = psutil.Process(exporter.process.pid)
    connection = exporter.connect()
    warm = min(1000, scrapes // 2)
    before = fds = counted = 0
    for number in range(scrapes):
        if number == warm:
            before, fds = process.memory_info().rss, process.num_fds()
        if number % 50 == 0:
            connection.close()
            connection = exporter.connect()
        connection.request("GET", "/metrics", headers={"Accept-Encoding": "gzip"})
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status == 200
        if number % 500 == 499:
            total = _observations(gzip.decompress(body).decode())
            assert total > counted
            counted = total
    connection.close()
    now = process.memory_info().rss / MEGABYTE
    grown = now - before / MEGABYTE
    print(f"{scrapes} scrapes: {grown:+.2f} MB from number {warm} on, {now:.0f} MB")
    assert grown <= 2.0
    assert process.num_fds() <= fds + 2, "up to two slots more"


def _observations(text: str) -> int:
    counts = [line.rpartition(" ")[2] for line in text.splitlines() if line.startswith("work_seconds_count")]
    return round(sum(map(float, counts)))


@pytest.mark.full
@pytest.mark.serial
@sizes("scrapes", 2_000, 20_000)
def test_many_scrapes_leave_nothing_behind(scrapes: int, registry_dir: Path, log: Path) -> None:
    with running(registry_dir, log) as exporter:
        processes, series = (8, 50) if scrapes == 2_000 else (64, 200)
        scrape_often(exporter, registry_dir, processes, series, scrapes)
