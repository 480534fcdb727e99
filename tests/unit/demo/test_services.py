from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from demo import DemoError
from demo import services as module
from demo.services import SIGNALS, Interrupted, Interrupts, Process, Processes, environment_of

WORKER_WITH_HORSE = """
import os, signal, sys, time
if "deaf" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
horse = os.fork()
if horse == 0:
    os.setpgrp()  # as RQ's work-horse does
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    print("horse", os.getpid(), flush=True)
    time.sleep(600)
os.wait()
"""


def wait_until(condition: Callable[[], object]) -> None:
    while not condition():
        time.sleep(0.01)


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def running(tmp_path: Path) -> Iterator[Processes]:
    found = Processes(tmp_path, os.environ)
    yield found
    found.stop_all()


def python(running: Processes, code: str, *arguments: str) -> Process:
    return running.start("test process", [sys.executable, "-c", code, *arguments])


def horse_of(process: Process) -> int:
    wait_until(lambda: process.log.read_text().startswith("horse "))
    return int(process.log.read_text().split()[1])


def test_a_process_that_ends_by_itself_is_an_error_with_the_end_of_its_log(running: Processes) -> None:
    code = "import sys; print('\\n'.join(f'line {n}' for n in range(99))); sys.exit('no [bold]port[/] left')"
    process = python(running, code)
    wait_until(lambda: process.ended)
    with pytest.raises(DemoError) as caught:
        running.check()
    message = str(caught.value)
    assert "test process ended by itself (exit code 1)" in message
    assert "no [bold]port[/] left" in message
    assert "line 98" in message
    assert "line 9\n" not in message


def test_a_process_that_cannot_be_started_is_an_error(running: Processes) -> None:
    with pytest.raises(DemoError, match="could not be started"):
        running.start("server", ["/nonexistent/server"])


def test_a_process_that_runs_is_not_an_error(running: Processes) -> None:
    process = python(running, "import time; time.sleep(600)")
    running.check()
    assert not process.ended


def test_a_check_for_the_end_does_not_reap_the_process(running: Processes) -> None:
    process = python(running, "pass")
    wait_until(lambda: process.ended)
    os.kill(process.popen.pid, 0)  # a zombie: no other process can have this pid


def test_a_horse_that_outlives_its_worker_is_ended(running: Processes) -> None:
    process = python(running, WORKER_WITH_HORSE)
    horse = horse_of(process)
    running.stop(process)
    wait_until(lambda: not alive(horse))
    assert process.popen.returncode == -signal.SIGTERM


def test_a_process_that_ignores_sigterm_is_killed_with_its_horse(
    running: Processes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TERM_SECONDS", 0.05)
    monkeypatch.setattr(module, "SECOND_TERM_SECONDS", 0.05)
    process = python(running, WORKER_WITH_HORSE, "deaf")
    horse = horse_of(process)
    running.stop_all()
    wait_until(lambda: not alive(horse))
    assert process.popen.returncode == -signal.SIGKILL


def test_impatience_shortens_the_wait(tmp_path: Path) -> None:
    running = Processes(tmp_path, os.environ, impatient=lambda: True)
    process = python(running, WORKER_WITH_HORSE, "deaf")
    horse = horse_of(process)
    running.stop_all()
    wait_until(lambda: not alive(horse))
    assert process.popen.returncode == -signal.SIGKILL


def test_a_process_that_was_reaped_is_stopped_once(running: Processes) -> None:
    process = python(running, "pass")
    wait_until(lambda: process.ended)
    with pytest.raises(DemoError):
        running.check()
    running.stop_all()
    running.stop_all()
    assert process.popen.returncode == 0


def test_servers_end_after_their_clients(tmp_path: Path) -> None:
    running = Processes(tmp_path, os.environ)
    # Each writes the time of its SIGTERM to a file.
    code = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(print(time.monotonic_ns())))\n"
        "print('ready', flush=True)\n"
        "time.sleep(600)\n"
    )
    server = running.start("server", [sys.executable, "-c", code], serves=True)
    client = running.start("client", [sys.executable, "-c", code])
    for process in (server, client):
        wait_until(lambda process=process: "ready" in process.log.read_text())  # type: ignore[misc]
    running.stop_all()
    assert int(client.log.read_text().split()[1]) < int(server.log.read_text().split()[1])


# ------------------------------------------------------------------ signals


def test_a_signal_is_kept_and_raised_at_the_next_check() -> None:
    with Interrupts() as interrupts:
        interrupts.check()
        os.kill(os.getpid(), signal.SIGTERM)
        assert interrupts.count == 1  # nothing was raised here
        with pytest.raises(Interrupted) as caught:
            interrupts.check()
        assert caught.value.signum == signal.SIGTERM


def test_a_pause_ends_with_the_signal() -> None:
    with Interrupts() as interrupts:
        timer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(Interrupted):
            interrupts.pause(240)
        timer.join()


def test_an_accepted_signal_is_over() -> None:
    with Interrupts() as interrupts:
        os.kill(os.getpid(), signal.SIGINT)
        interrupts.accept()
        assert interrupts.count == 0
        interrupts.pause(0)
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(Interrupted):
            interrupts.pause(240)


def test_the_earlier_handlers_are_restored() -> None:
    before = [signal.getsignal(number) for number in SIGNALS]
    with Interrupts():
        assert [signal.getsignal(number) for number in SIGNALS] != before
    assert [signal.getsignal(number) for number in SIGNALS] == before


# ------------------------------------------------------------------ the environment


def test_foreign_settings_reach_no_process_but_rqs_key_prefix_does(tmp_path: Path) -> None:
    outer = {
        "JOBMETRICS_MAX_SERIES": "1",
        "CELERY_BROKER_URL": "x",
        "RQ_REDIS_URL": "x",
        "RQ_KEY_PREFIX": "app",
        "A": "b",
    }
    found = environment_of(tmp_path, {**outer, "PYTHONPATH": "here"})
    assert (found["RQ_KEY_PREFIX"], found["A"], found["JOBMETRICS_DIR"]) == ("app", "b", str(tmp_path / "registry"))
    assert not {"JOBMETRICS_MAX_SERIES", "CELERY_BROKER_URL", "RQ_REDIS_URL"} & found.keys()
    examples, root, here = found["PYTHONPATH"].split(os.pathsep)
    assert (Path(examples) / "celery_app").is_dir()
    assert (Path(root) / "demo").is_dir()
    assert here == str(Path("here").absolute())
