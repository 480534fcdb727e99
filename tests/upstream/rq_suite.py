"""RQ's own tests on the installed RQ, bare and with jobmetrics' worker classes: no worse results.

    python tests/upstream/rq_suite.py [test files such as tests/test_worker.py]

The tests come from the source distribution of the installed version, by pip, and are not kept. They ask for Redis at
its default port. Where the system permits it (`unshare -rn`), they run in a network of their own; elsewhere that port
of this machine must be free. With `-p rq_suite` this file is also the pytest plugin that puts our classes in place.
"""

from __future__ import annotations

import fcntl
import importlib
import os
import shutil
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
from redis import Redis

# Programs and a pytest plugin, found by their folder: where RQ's tests run, `tests` is another package.
if TYPE_CHECKING:
    from tests.upstream.outcomes import Results, compare, is_answering, read_report, redis_on, source_of
else:
    from outcomes import Results, compare, is_answering, read_report, redis_on, source_of

PORT = 6379
TEST_SECONDS = 60
LEAVE_SECONDS = 5  # from the report to the end of pytest, which waits for workers that a failed test left
PLUGIN = ("-p", "rq_suite")
SUITE, OWN_NETWORK = "RQ_SUITE_DIRECTORY", "RQ_SUITE_OWN_NETWORK"


def pytest_configure() -> None:
    """As a plugin: replace RQ's classes by those of jobmetrics, wherever RQ names them."""
    import rq.worker

    import jobmetrics.rq

    for name in ("rq.cli", "rq.cli.helpers", "rq.scheduler", "rq.worker_pool"):
        importlib.import_module(name)
    for name in ("HerokuWorker", "RoundRobinWorker", "RandomWorker"):
        jobmetrics.rq.instrument(getattr(rq.worker, name))
    names = [name for name in ("Worker", "SimpleWorker", "SpawnWorker") if hasattr(jobmetrics.rq, name)]
    ours = {getattr(rq.worker, name): getattr(jobmetrics.rq, name) for name in names}
    for module in [module for name, module in sys.modules.items() if name.partition(".")[0] == "rq"]:
        for name, value in list(vars(module).items()):
            if isinstance(value, type) and value in ours:
                setattr(module, name, ours[value])


def main(arguments: Sequence[str]) -> int:
    """Fetch the suite and run it twice; the exit code: 1 if results differ, 2 if it cannot run here."""
    if SUITE in os.environ:
        if OWN_NETWORK in os.environ:
            _bring_up_loopback()
        with redis_on(PORT):
            return _compare(Path(os.environ[SUITE]), arguments)
    own_network = ["unshare", "-rn"] if _may_unshare() else []
    if not own_network and is_answering(PORT):
        print(f"rq_suite: port {PORT} is in use and `unshare -rn` is not permitted; stop what listens there")
        return 2
    with tempfile.TemporaryDirectory() as made:
        environment = {**os.environ, SUITE: made, **({OWN_NETWORK: "1"} if own_network else {})}
        if not _fetch(Path(made)):
            print("rq_suite: pip cannot fetch the source distribution of the installed RQ")
            return 2
        command = [*own_network, sys.executable, __file__, *arguments]
        return subprocess.run(command, env=environment, check=False).returncode


def _compare(suite: Path, arguments: Sequence[str]) -> int:
    return compare(
        "rq",
        lambda: _both(suite, arguments),
        lambda names: _both(suite, sorted({_file(name) for name in names})),
        suite / "registry",
    )


def _both(suite: Path, tests: Sequence[str]) -> tuple[Results, Results]:
    return _run(suite, (), tests), _run(suite, PLUGIN, tests)


def _file(name: str) -> str:
    return "/".join(name.split("::", maxsplit=1)[0].split(".")[:2]) + ".py"


def _fetch(suite: Path) -> bool:
    try:
        with source_of("rq") as unpacked:
            shutil.copytree(unpacked / "tests", suite / "tests")
    except subprocess.CalledProcessError:
        return False
    return True


def _run(suite: Path, plugin: Sequence[str], arguments: Sequence[str]) -> Results:
    """Run the suite once; return outcomes by test."""
    report = suite / "report.xml"
    report.unlink(missing_ok=True)
    environment = {
        **os.environ,
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
        "PYTHONPATH": str(Path(__file__).parent),
        "JOBMETRICS_DIR": str(suite / "registry"),
        "JOBMETRICS_PROPAGATE_ERRORS": "1",
    }
    command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", "-W", "ignore"]
    command.append("--continue-on-collection-errors")  # old releases import packages that are not installed
    options = [f"--timeout={TEST_SECONDS}", f"--junitxml={report}", *plugin, *(arguments or ["tests"])]
    Redis(port=PORT).flushall()
    _run_to_report([*command, *options], suite, environment, report)
    return read_report(report)


def _run_to_report(command: Sequence[str], suite: Path, environment: dict[str, str], report: Path) -> None:
    """Run pytest until it exits, or some seconds after its report; then end the processes that it started."""
    started = psutil.Popen(command, cwd=suite, env=environment)
    leave_at = None
    while started.poll() is None and (leave_at is None or time.monotonic() < leave_at):
        if leave_at is None and report.exists():
            leave_at = time.monotonic() + LEAVE_SECONDS
        time.sleep(0.1)
    left = [process for process in psutil.process_iter() if _is_of(process, suite)]
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(left, timeout=LEAVE_SECONDS)


def _is_of(process: psutil.Process, suite: Path) -> bool:
    """Whether a process runs in the suite's directory, as all processes of its tests do."""
    try:
        return process.cwd() == str(suite)
    except psutil.Error:
        return False


def _may_unshare() -> bool:
    program = shutil.which("unshare")
    return program is not None and not subprocess.run([program, "-rn", "true"], check=False).returncode


def _bring_up_loopback() -> None:
    flags, set_flags = 0x1 | 0x40, 0x8914  # IFF_UP | IFF_RUNNING, SIOCSIFFLAGS: netdevice(7)
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, set_flags, struct.pack("16sH14x", b"lo", flags))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
