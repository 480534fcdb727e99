"""Clients that are slow, silent, endless or many never prevent a scrape."""

from __future__ import annotations

import contextlib
import resource
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

from tests.e2e.certificates import Authority
from tests.e2e.exporters import LIMIT, Exporter, recording, running
from tests.multiprocess.support import workers
from tests.support import servers
from tests.support.readings import until

MEGABYTE = 1_000_000
SCRAPE_SECONDS = 1.0
SLOW_CLIENTS_SCRAPE_SECONDS = 2.0  # beside 500 slow clients
SLOW_CLIENTS_MEGABYTES = 200  # of the exporter beside 500 slow clients
DRIP_SECONDS = 15.0  # until a client that sends its headers byte by byte is cut off

T = TypeVar("T", bound=Callable[..., object])


def measures(test: T) -> T:
    """Mark a test that measures seconds or megabytes."""
    marked: T = pytest.mark.full(pytest.mark.serial(test))
    return marked


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "exporter.log"


@pytest.fixture(autouse=True)
def many_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@contextlib.contextmanager
def serving(kind: str, directory: Path, log: Path, tmp_path: Path) -> Iterator[Exporter]:
    """An exporter on plain HTTP or TLS."""
    if kind == "http":
        with running(directory, log) as exporter:
            yield exporter
        return
    authority = Authority(tmp_path)
    certificate = authority.issue("server")
    config = tmp_path / "web.yml"
    config.write_text(f"tls_server_config: {{cert_file: {certificate.cert}, key_file: {certificate.key}}}\n")
    with running(directory, log, "--web-config", str(config)) as exporter:
        exporter.tls = authority.client_context()
        yield exporter


def scrape_in_time(exporter: Exporter, seconds: float = SCRAPE_SECONDS) -> float:
    start = time.monotonic()
    assert exporter.scrape()("jobmetrics_directory_up") == 1
    took = time.monotonic() - start
    assert took < seconds
    return took


def resident(exporter: Exporter) -> int:
    return psutil.Process(exporter.process.pid).memory_info().rss


def opened(exporter: Exporter) -> socket.socket:
    sock = socket.create_connection(exporter.address, timeout=LIMIT)
    if exporter.tls is None:
        return sock
    try:
        return exporter.tls.wrap_socket(sock, server_hostname="localhost")
    except OSError:
        sock.close()
        raise


@contextlib.contextmanager
def slow_clients(exporter: Exporter, count: int) -> Iterator[None]:
    """This number of clients, which send a header byte now and then, and reconnect when they are disconnected."""
    ended = threading.Event()
    there = threading.Semaphore(0)

    def be_slow() -> None:
        first = True
        while not ended.is_set():
            with contextlib.suppress(OSError), opened(exporter) as sock:
                sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nX-Slow: ")
                if first:
                    first = False
                    there.release()
                while not ended.wait(1.0):
                    sock.sendall(b"a")
            ended.wait(1.0)

    threads = [threading.Thread(target=be_slow) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        for _ in threads:
            assert there.acquire(timeout=LIMIT)
        yield
    finally:
        ended.set()
        for thread in threads:
            thread.join(LIMIT)


@measures
@pytest.mark.parametrize("kind", ["http", "https"])
def test_500_slow_clients_do_not_delay_a_scrape(kind: str, registry_dir: Path, log: Path, tmp_path: Path) -> None:
    with serving(kind, registry_dir, log, tmp_path) as exporter, recording(registry_dir):
        scrape_in_time(exporter)
        before = resident(exporter)
        with slow_clients(exporter, 500):
            took = []
            for _ in range(15):  # while clients are disconnected and reconnect
                took.append(scrape_in_time(exporter, SLOW_CLIENTS_SCRAPE_SECONDS))
                time.sleep(1.0)
            held = resident(exporter)
            print(f"{kind}: 500 slow clients: {before / MEGABYTE:.0f} -> {held / MEGABYTE:.0f} MB, {max(took):.3f} s")
            assert held < SLOW_CLIENTS_MEGABYTES * MEGABYTE
            assert kind == "https" or held - before < 60 * MEGABYTE
        scrape_in_time(exporter)
        assert "Traceback" not in exporter.log


@measures
@pytest.mark.parametrize("kind", ["http", "https"])
def test_connections_beyond_the_cap_replace_the_longest_waiting(
    kind: str, registry_dir: Path, log: Path, tmp_path: Path
) -> None:
    with serving(kind, registry_dir, log, tmp_path) as exporter, contextlib.ExitStack() as clients:
        scrape_in_time(exporter)
        process = psutil.Process(exporter.process.pid)
        for _ in range(1500):
            clients.enter_context(socket.create_connection(exporter.address, timeout=LIMIT))
        scrape_in_time(exporter)
        assert process.num_fds() < 500


def test_idle_connections_leave_descriptors_for_the_slots(registry_dir: Path, log: Path) -> None:
    limited = [servers.program("prlimit"), "--nofile=200:200"]
    with running(registry_dir, log, under=limited) as exporter, contextlib.ExitStack() as clients:
        exporter.scrape()
        clients.enter_context(workers_that_recorded(registry_dir, 40))
        # As many as leave a scrape its own descriptor and the slots a few: with none left they would be cut off first.
        for _ in range(195 - psutil.Process(exporter.process.pid).num_fds()):
            clients.enter_context(socket.create_connection(exporter.address, timeout=LIMIT))
        for _ in range(2):
            exposed = exporter.scrape()
            assert exposed("jobmetrics_slots", state="damaged") == 0
            assert exposed("jobmetrics_slots", state="live") == 40


@contextlib.contextmanager
def workers_that_recorded(directory: Path, count: int) -> Iterator[None]:
    with workers(directory, count) as started:
        for each in started:
            each.ask("job")
        yield


@measures
def test_a_silent_client_on_the_tls_port_does_not_delay_a_scrape_and_is_cut_off(
    registry_dir: Path, log: Path, tmp_path: Path
) -> None:
    with serving("https", registry_dir, log, tmp_path) as exporter:
        with socket.create_connection(exporter.address, timeout=LIMIT) as silent:
            scrape_in_time(exporter)
            assert silent.recv(1) == b""
        with socket.create_connection(exporter.address, timeout=LIMIT) as plain:
            plain.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n")
            with contextlib.suppress(ConnectionResetError):
                assert b"200 OK" not in plain.recv(1000)
        scrape_in_time(exporter)


@measures
@pytest.mark.parametrize("kind", ["http", "https"])
@pytest.mark.parametrize("chunk", [b"X-Endless: " + b"a" * 1000 + b"\r\n", b"a" * 1000])
def test_endless_headers_are_cut_off_and_memory_stays_bounded(
    kind: str, chunk: bytes, registry_dir: Path, log: Path, tmp_path: Path
) -> None:
    with serving(kind, registry_dir, log, tmp_path) as exporter:
        scrape_in_time(exporter)
        before = resident(exporter)
        sent = 0
        with opened(exporter) as sock, contextlib.suppress(OSError):
            sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\n")
            while sent < 100 * MEGABYTE:
                sock.sendall(chunk * 50)
                sent += 50 * len(chunk)
        assert sent < 20 * MEGABYTE, "the size of the kernel's buffers, but no more"
        scrape_in_time(exporter)
        assert resident(exporter) - before < 10 * MEGABYTE


@measures
@pytest.mark.parametrize("kind", ["http", "https"])
@pytest.mark.parametrize("requests", [0, 1], ids=["first request", "second request"])
def test_a_client_that_drips_or_idles_is_cut_off(
    kind: str, requests: int, registry_dir: Path, log: Path, tmp_path: Path
) -> None:
    with serving(kind, registry_dir, log, tmp_path) as exporter, opened(exporter) as dripping:
        for _ in range(requests):
            dripping.sendall(b"HEAD /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
            assert dripping.recv(1000).endswith(b"\r\n\r\n")
        dripping.sendall(b"GET /metrics HT")
        dripping.settimeout(0.5)
        start = time.monotonic()
        answer = None
        while answer is None:
            assert time.monotonic() - start < DRIP_SECONDS
            try:
                answer = dripping.recv(1)
            except TimeoutError:
                with contextlib.suppress(OSError):
                    dripping.sendall(b"T")
            except OSError:  # a reset, or the end of TCP without the end of TLS
                answer = b""
        print(f"{kind}: a dripping client is cut off after {time.monotonic() - start:.1f} s")
        assert answer == b""


@measures
def test_a_client_that_resets_its_connection_leaves_nothing_behind(
    registry_dir: Path, log: Path, tmp_path: Path
) -> None:
    with serving("https", registry_dir, log, tmp_path) as exporter:
        scrape_in_time(exporter)
        before = resident(exporter)
        for _ in range(400):
            with opened(exporter) as sock:
                sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
                assert sock.recv(1000).startswith(b"HTTP/1.1 200")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        scrape_in_time(exporter)
        assert resident(exporter) - before < 40 * MEGABYTE


@measures
def test_no_part_of_an_answer_waits_for_an_acknowledgement(registry_dir: Path, log: Path) -> None:
    with running(registry_dir, log) as exporter, contextlib.closing(exporter.connect()) as connection:
        took = []
        for _ in range(20):
            start = time.monotonic()
            connection.request("GET", "/metrics")
            connection.getresponse().read()
            took.append(time.monotonic() - start)
        assert min(took[1:]) < 0.03, "a client delays an acknowledgement by 40 ms"


@measures
def test_prometheus_may_keep_its_connection_between_two_scrapes(registry_dir: Path, log: Path) -> None:
    with running(registry_dir, log) as exporter, contextlib.closing(exporter.connect()) as connection:
        for _ in range(2):
            connection.request("GET", "/metrics")
            sock = connection.sock
            assert connection.getresponse().read()
            assert connection.sock is sock, "the same one"
            time.sleep(6)  # servers commonly close after 5


@measures
def test_an_endless_body_is_not_read(registry_dir: Path, log: Path) -> None:
    with running(registry_dir, log) as exporter, opened(exporter) as sock:
        scrape_in_time(exporter)
        before = resident(exporter)
        sock.sendall(b"GET /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 100000000\r\n\r\n")
        with contextlib.suppress(OSError):
            for _ in range(100):
                sock.sendall(b"a" * MEGABYTE)
        scrape_in_time(exporter)
        assert resident(exporter) - before < 10 * MEGABYTE


@pytest.mark.parametrize("before", [0, 1], ids=["first request", "second request"])
def test_a_broken_body_is_refused_once_and_leaves_no_line_in_the_log(
    before: int, registry_dir: Path, log: Path
) -> None:
    broken = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nno length\r\n"
    with running(registry_dir, log) as exporter:
        started = exporter.log
        with socket.create_connection(exporter.address, timeout=LIMIT) as sock:
            sock.sendall(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * before + broken)
            answers = b"".join(iter(lambda: sock.recv(65536), b""))
        assert answers.count(b"HTTP/1.1 200 ") == before
        assert answers.count(b"HTTP/1.1 ") == before + 1
        exporter.scrape()
        assert exporter.log == started


@measures
def test_a_client_that_never_reads_its_answers_delays_nothing(registry_dir: Path, log: Path) -> None:
    with running(registry_dir, log) as exporter, contextlib.ExitStack() as clients:
        scrape_in_time(exporter)
        before = resident(exporter)
        for _ in range(20):
            sock = clients.enter_context(opened(exporter))
            sock.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                for _ in range(2000):
                    sock.send(b"GET /metrics HTTP/1.1\r\nHost: x\r\n\r\n" * 20)
        for _ in range(3):
            scrape_in_time(exporter)
        assert resident(exporter) - before < 60 * MEGABYTE


@measures
def test_many_scrapes_at_once_are_all_answered(registry_dir: Path, log: Path) -> None:
    with running(registry_dir, log) as exporter, recording(registry_dir), ThreadPoolExecutor(40) as pool:
        answers = [pool.submit(exporter.ask, "/metrics") for _ in range(200)]
        assert {answer.result(LIMIT)[0] for answer in answers} == {200}


@measures
def test_no_descriptor_is_left_when_clients_are_gone(registry_dir: Path, log: Path, tmp_path: Path) -> None:
    with serving("https", registry_dir, log, tmp_path) as exporter:
        scrape_in_time(exporter)
        process = psutil.Process(exporter.process.pid)
        until(lambda: not process.net_connections() or all(c.status == "LISTEN" for c in process.net_connections()), "")
        before = process.num_fds()
        for number in range(200):
            with socket.create_connection(exporter.address, timeout=LIMIT) as sock:
                if number % 2:
                    sock.sendall(b"\x16\x03\x01 nonsense")
        with contextlib.suppress(ssl.SSLError):
            exporter.scrape()
        until(lambda: process.num_fds() <= before, "the descriptors to be closed")
