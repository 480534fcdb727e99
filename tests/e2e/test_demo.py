"""The demo as a user starts it: real workers, a real broker, real signals."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from rq import defaults

from tests.support import servers

HANG_SECONDS = 200
ROOT = Path(__file__).parents[2]


class Demo:
    """A run of the demo with its output so far and a temporary directory."""

    def __init__(self, temporary: Path, stdout: int | None = None, **environment: str) -> None:
        temporary.mkdir(exist_ok=True)
        self.temporary = temporary
        inherited = {name: value for name, value in os.environ.items() if name not in {"DEMO_SECONDS", "REDIS_URL"}}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "demo"],
            cwd=ROOT,
            env={**inherited, "TMPDIR": str(temporary), "NO_COLOR": "1", **environment},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if stdout is None else stdout,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._said: list[str] = []
        if self.process.stdout is not None:
            self._reader = threading.Thread(target=self._said.extend, args=(self.process.stdout,))
            self._reader.start()

    @property
    def said(self) -> str:
        return "".join(self._said)

    def home(self) -> Path | None:
        return next(iter(self.temporary.glob("jobmetrics-demo-*")), None)

    def ledger_lines(self) -> list[dict[str, object]]:
        home = self.home()
        if home is None or not (home / "ledger.jsonl").exists():
            return []
        return [json.loads(line) for line in (home / "ledger.jsonl").read_text().splitlines(keepends=True)]

    def wait_until(self, condition: Callable[[], object]) -> None:
        deadline = time.monotonic() + HANG_SECONDS
        while not condition():
            assert self.process.poll() is None, f"the demo ended too early:\n{self.said}"
            assert time.monotonic() < deadline, f"the demo hangs:\n{self.said}"
            time.sleep(0.02)

    def kill(self) -> None:
        """Interrupt the demo if it still runs; it ends its processes."""
        if self.process.poll() is None:
            self.process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                self.process.wait(60)

    def end(self) -> int:
        """Wait for the exit; the temporary directory must be empty then."""
        code = self.process.wait(HANG_SECONDS)
        if self.process.stdout is not None:
            self._reader.join()
            self.process.stdout.close()
        assert list(self.temporary.iterdir()) == [], self.said
        return code


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Callable[..., Demo]]:
    """Start demos; conftest's no_process_left finds processes that they leave."""
    started: list[Demo] = []

    def start(**options: object) -> Demo:
        started.append(Demo(tmp_path / f"tmp{len(started)}", **options))  # type: ignore[arg-type]
        return started[-1]

    yield start
    for one in started:
        one.kill()


def counted(said: str) -> dict[str, int]:
    """Lines 'SYSTEM JOBTYPE jobs: sent N = ledger N = counted N' by system and job type."""
    lines = re.findall(r"^  (\w+ \S+) jobs: sent (\d+) = ledger (\d+) = counted (\d+)$", said, re.MULTILINE)
    assert all(sent == ledger == metrics for _, sent, ledger, metrics in lines), said
    return {job: int(sent) for job, sent, *_ in lines}


def assert_shows_every_outcome(said: str, system: str) -> None:
    """Success, failure, a retry that finally succeeds and a retry that finally fails."""
    for outcome in ("success", "failure", "retry"):
        assert re.search(rf"{system} \S*verify_delivery {outcome}: ledger [1-9]\d* = counted [1-9]", said), said
    for error in ("EOFError", "ValueError", "ChecksumMismatchError"):
        assert re.search(rf"{system} \S+ failures {error}: ledger [1-9]", said), said


# ------------------------------------------------------------------ one run on a private Redis


@pytest.fixture(scope="module")
def private_run(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The output of a run on a private Redis with enough rounds to show each outcome."""
    servers.program("redis-server")
    run = Demo(tmp_path_factory.mktemp("demo") / "tmp", DEMO_SECONDS="8")
    try:
        assert run.end() == 0, run.said
    finally:
        run.kill()
    return run.said


def test_on_a_private_redis_all_counts_agree(private_run: str) -> None:
    assert re.search(r"^sent = ledger = counted: \d+ executions", private_run, re.MULTILINE)
    assert "DIFFERENT" not in private_run


def test_both_systems_run_every_job_of_the_examples(private_run: str) -> None:
    jobs = {"verify_delivery", "import_orders", "deliver_file", "compress_file", "check_archive", "exhaust_memory"}
    found = {(job.split()[0], job.rpartition(".")[2]) for job in counted(private_run)}
    assert found == {(system, job) for system in ("celery", "rq") for job in jobs}
    assert all(counted(private_run).values())


@pytest.mark.parametrize("system", ["celery", "rq"])
def test_every_outcome_is_shown(private_run: str, system: str) -> None:
    assert_shows_every_outcome(private_run, system)


@pytest.mark.parametrize(("system", "error"), [("celery", "WorkerLostError"), ("rq", "WorkHorseKilled")])
def test_a_job_whose_process_is_killed_is_counted_once(private_run: str, system: str, error: str) -> None:
    job = rf"{system} \S+\.exhaust_memory"
    assert re.search(rf"{job} jobs: sent 1 = ledger 1 = counted 1$", private_run, re.MULTILINE), private_run
    assert re.search(rf"{job} failures {error}: ledger 1 = counted 1$", private_run, re.MULTILINE), private_run
    assert f"{system} processes killed: ledger 1 = counted 1\n" in private_run


def test_the_table_shows_run_times_and_waits(private_run: str) -> None:
    row = next(line for line in private_run.splitlines() if line.startswith("  deliver_file "))
    assert len(row.split()) == 8, row
    assert re.fullmatch(r"\d+ms", row.split()[5]), "the median run time"
    assert "p95 wait" in private_run


# ------------------------------------------------------------------ separate runs


@pytest.mark.full
def test_on_a_given_redis_only_the_demos_keys_are_removed(demo: Callable[..., Demo], redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.set("theirs", "1")
        client.hset("unacked", "tag", "their message")
        client.lpush("celery", "their message")
        client.sadd("rq:queues", "rq:queue:theirs")
        client.lpush("rq:queue:theirs", "their-job")

        def kept() -> dict[bytes, bytes]:
            """All keys but RQ's lock, which every worker may set and which expires."""
            return {key: client.dump(key) for key in client.scan_iter() if key != b"rq:clean_groups"}

        before = kept()
        first = demo(DEMO_SECONDS="2", REDIS_URL=redis_url)
        second = demo(DEMO_SECONDS="2", REDIS_URL=redis_url)
        assert (first.end(), second.end()) == (0, 0), first.said + second.said
        assert kept() == before
        interrupted = demo(DEMO_SECONDS="100", REDIS_URL=redis_url)
        interrupted.wait_until(interrupted.ledger_lines)
        interrupted.process.send_signal(signal.SIGINT)
        interrupted.process.send_signal(signal.SIGTERM)
        interrupted.end()
        assert kept() == before


@pytest.mark.full
def test_it_follows_rqs_key_prefix(demo: Callable[..., Demo], redis_url: str) -> None:
    if not hasattr(defaults, "RQ_KEY_PREFIX"):
        pytest.skip("this RQ has no key prefix")
    with redis.Redis.from_url(redis_url) as client:
        run = demo(DEMO_SECONDS="2", REDIS_URL=redis_url, RQ_KEY_PREFIX="app")
        run.wait_until(lambda: client.exists("app:queues"))
        assert run.end() == 0, run.said
        assert {job.split()[0] for job in counted(run.said)} == {"celery", "rq"}
        assert not [key for key in client.scan_iter() if key != b"app:clean_groups"]


def test_a_key_prefix_that_rq_refuses_is_one_line(demo: Callable[..., Demo]) -> None:
    if not hasattr(defaults, "RQ_KEY_PREFIX"):
        pytest.skip("this RQ has no key prefix")
    run = demo(RQ_KEY_PREFIX="a b")
    assert run.end() == 2
    assert run.said.count("\n") == 1
    assert run.said.startswith("demo: RQ cannot be imported: Invalid RQ_KEY_PREFIX 'a b'")


@pytest.mark.full
def test_without_redis_celery_runs_alone_and_agrees(demo: Callable[..., Demo]) -> None:
    run = demo(DEMO_SECONDS="8", DEMO_WITHOUT_REDIS="1")
    assert run.end() == 0, run.said
    assert {job.split()[0] for job in counted(run.said)} == {"celery"}
    assert_shows_every_outcome(run.said, "celery")
    (sentence,) = [line for line in run.said.splitlines() if "RQ is left out" in line]
    assert "apt-get install redis-server" in sentence
    assert "REDIS_URL" in sentence


@pytest.mark.full
@pytest.mark.parametrize("signals", ["SIGINT", "SIGINT SIGINT", "SIGTERM"])
@pytest.mark.parametrize("transport", ["redis", "files"])
def test_a_signal_during_the_run_leaves_nothing(demo: Callable[..., Demo], transport: str, signals: str) -> None:
    if transport == "redis":
        servers.program("redis-server")
    run = demo(DEMO_SECONDS="100", **({} if transport == "redis" else {"DEMO_WITHOUT_REDIS": "1"}))
    run.wait_until(lambda: len(run.ledger_lines()) > 10)
    first, *more = (signal.Signals[name] for name in signals.split())
    run.process.send_signal(first)
    for signum in more:
        run.process.send_signal(signum)
    assert run.end() == 128 + first, run.said
    assert f"ended by {first.name}" in run.said


def test_a_signal_while_it_starts_leaves_nothing(demo: Callable[..., Demo]) -> None:
    run = demo(DEMO_SECONDS="100")
    run.wait_until(run.home)
    run.process.send_signal(signal.SIGINT)
    assert run.end() == 128 + signal.SIGINT, run.said


@pytest.mark.full
def test_a_difference_is_printed_and_exits_1(demo: Callable[..., Demo]) -> None:
    run = demo(DEMO_SECONDS="2", DEMO_WITHOUT_REDIS="1")
    run.wait_until(run.ledger_lines)
    line = {"system": "celery", "job_type": "celery_app.tasks.compress_file", "id": "nobody", "outcome": "failure"}
    home = run.home()
    assert home is not None
    with (home / "ledger.jsonl").open("a") as ledger:
        ledger.write(json.dumps({**line, "error_type": "PlantedError"}) + "\n")
    assert run.end() == 1, run.said
    assert "DIFFERENT celery celery_app.tasks.compress_file failures PlantedError: ledger 1 != counted 0" in run.said
    assert re.search(r"\d+ of \d+ comparisons differ", run.said)


@pytest.mark.full
def test_a_server_that_does_not_start_is_shown_with_its_log(demo: Callable[..., Demo], tmp_path: Path) -> None:
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "redis-server").write_text("#!/bin/sh\necho 'no [memory] for you'\nexit 3\n")
    (folder / "redis-server").chmod(0o755)
    run = demo(DEMO_SECONDS="1", PATH=f"{folder}{os.pathsep}{os.environ['PATH']}")
    assert run.end() == 1
    assert "the Redis ended by itself (exit code 3)" in run.said
    assert "no [memory] for you" in run.said
    assert "Traceback" not in run.said


@pytest.mark.full
def test_a_worker_that_dies_is_shown_with_its_log(demo: Callable[..., Demo]) -> None:
    run = demo(DEMO_SECONDS="100", DEMO_WITHOUT_REDIS="1")
    run.wait_until(run.ledger_lines)
    os.kill(child_of(run.process.pid, "celery"), signal.SIGKILL)
    assert run.end() == 1, run.said
    assert "the Celery worker ended by itself (exit code -9)" in run.said


def child_of(pid: int, word: str) -> int:
    """The child whose command line has this word."""
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        if word in Path(f"/proc/{child}/cmdline").read_text().split("\0"):
            return int(child)
    raise AssertionError(f"no child with {word}")


def test_a_redis_that_does_not_answer_is_one_line_without_its_password(demo: Callable[..., Demo]) -> None:
    (port,) = servers.free_ports(1)
    run = demo(DEMO_SECONDS="1", REDIS_URL=f"redis://:s3cr%2Fet@127.0.0.1:{port}/0")
    assert run.end() == 1
    assert run.said.count("\n") == 1
    assert "REDIS_URL" in run.said
    assert str(port) in run.said
    assert "s3cr" not in run.said


@pytest.mark.full
def test_on_a_terminal_a_table_is_shown_until_ctrl_c(demo: Callable[..., Demo]) -> None:
    servers.program("redis-server")
    ours, theirs = pty.openpty()
    run = demo(stdout=theirs, TERM="xterm", COLUMNS="100", LINES="60")
    os.close(theirs)
    shown = bytearray()

    def read() -> bytearray:
        with contextlib.suppress(OSError):  # EIO: the other side is closed
            while select.select([ours], [], [], 0)[0]:
                shown.extend(os.read(ours, 65536))
        return shown

    # A job with its queue, rate and median run time, and a queue with its depth: the table of `jobmetrics top`.
    run.wait_until(lambda: re.search(rb"celery verify_delivery +demo-celery +\d+\.\d .* \d+ms", read()))
    run.wait_until(lambda: re.search(rb"rq demo-rq +default +\d+ ", read()))
    assert b"Ctrl-C ends the demo" in shown
    run.process.send_signal(signal.SIGINT)
    run.wait_until(lambda: b"Ctrl-C again" in read())
    deadline = time.monotonic() + HANG_SECONDS
    while run.process.poll() is None and time.monotonic() < deadline:
        read()  # otherwise the demo would block on a full terminal
        time.sleep(0.02)
    read()
    os.close(ours)
    said = shown.decode(errors="replace").replace("\r\n", "\n")
    assert run.end() == 0, said
    assert "sent = ledger = counted:" in said
    assert counted(said)
