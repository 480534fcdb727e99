"""Fixtures for all tests: real servers, a registry directory, and nothing left over between tests."""

from __future__ import annotations

import collections
import contextlib
import functools
import multiprocessing.forkserver
import multiprocessing.resource_tracker
import os
import re
import signal
import sys
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pytest

from tests.support import servers

if TYPE_CHECKING:
    from collections.abc import Iterator

# In the environment of everything a test starts: finds processes after their parent has died.
_MARK = "STARTED_BY_TEST"

# Seconds that an interrupted process has before it must be gone.
_GRACE_SECONDS = 2.0

_HERE = Path(__file__).parent
_UNIT = _HERE / "unit"


def pytest_configure() -> None:
    """Let tests interrupt their processes: children inherit that a shell's background job ignores SIGINT."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)  # a hook of pytest-xdist
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each process one test at a time, and tests that share a module's fixture or RabbitMQ to one process.

    pytest-xdist's marks for groups do nothing with pytest 9.2.
    """
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _unit(nodeid)

    config.option.loadscopereorder = False  # the order of collection is that of the work
    return Scheduling(config, log)


@pytest.hookimpl(trylast=True)  # after the tests that are not selected have left
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """In parallel runs, start with the tests that take minutes, and then the largest groups: they would end last."""
    if hasattr(config, "workerinput"):
        sizes = collections.Counter(_unit(item.nodeid) for item in items)
        first = {_unit(item.nodeid) for item in items if item.get_closest_marker("first")}
        items.sort(key=lambda item: (_unit(item.nodeid) not in first, -sizes[_unit(item.nodeid)]))


def _unit(nodeid: str) -> str:
    """What one process gets at a time: a test, or a group of tests."""
    return _group(nodeid.partition("::")[0]) or nodeid


@functools.cache
def _group(file: str) -> str | None:
    text = (_HERE.parent / file).read_text()
    if re.search(r"\brabbitmq_url\b|_shared_rabbitmq", text):
        return "rabbitmq"
    return file if 'scope="module"' in text else None


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove all JOBMETRICS_* variables of the shell."""
    for name in list(os.environ):
        if name.startswith("JOBMETRICS_"):
            monkeypatch.delenv(name)


# Looking through all processes takes as long as many unit tests, most of which start none.
_STARTS = frozenset({"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system"})
_processes_started = 0


def _count_starts(event: str, _: object) -> None:
    global _processes_started
    if event in _STARTS:
        _processes_started += 1


sys.addaudithook(_count_starts)


@pytest.fixture(autouse=True)
def no_process_left(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fail a test that leaves processes, after ending them."""
    mark = uuid.uuid4().hex
    monkeypatch.setenv(_MARK, mark)
    unit = request.path.is_relative_to(_UNIT)
    before = set() if unit else set(psutil.Process().children(recursive=True))
    starts = _processes_started
    yield
    if unit and starts == _processes_started:
        return
    left = _started(mark) - before
    if left:
        psutil.wait_procs(left, timeout=_GRACE_SECONDS)
        alive = [process for process in left if not _ended(process)]
        named = [_described(process) for process in alive]
        servers.kill_all(alive)
        psutil.wait_procs(alive, timeout=_GRACE_SECONDS)
        if named:
            pytest.fail("the test left processes behind:\n" + "\n".join(named), pytrace=False)


def _started(mark: str) -> set[psutil.Process]:
    """Descendants of this process and processes with the mark, without those that may stay."""
    found = set(psutil.Process().children(recursive=True)) | set(_marked(mark))
    return {process for process in found if not _ended(process) and not _stays(process)}


def _marked(mark: str) -> Iterator[psutil.Process]:
    needle = f"{_MARK}={mark}".encode()
    for pid in psutil.pids():
        # Other users' processes, and those that end meanwhile.
        with contextlib.suppress(OSError, psutil.NoSuchProcess):
            if needle in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                yield psutil.Process(pid)


def _ended(process: psutil.Process) -> bool:
    """Whether the process is gone or a zombie; a zombie child is reaped."""
    try:
        if process.status() != psutil.STATUS_ZOMBIE:
            return False
    except psutil.NoSuchProcess:
        return True
    with contextlib.suppress(ChildProcessError):
        os.waitpid(process.pid, os.WNOHANG)
    return True


def _stays(process: psutil.Process) -> bool:
    # multiprocessing keeps one of each until the interpreter exits, by design.
    helpers = {
        getattr(multiprocessing.resource_tracker, "_resource_tracker")._pid,  # noqa: B009 - not in the stubs
        getattr(multiprocessing.forkserver, "_forkserver")._forkserver_pid,  # noqa: B009 - not in the stubs
    }
    if process.pid in helpers:
        return True
    with contextlib.suppress(psutil.NoSuchProcess):
        family = {process.pid, *(parent.pid for parent in process.parents())}
        return bool(family & servers.shared_pids)
    return True


def _described(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
        return f"{process.pid}: {' '.join(process.cmdline())}"
    return f"{process.pid}"


@pytest.fixture
def registry_dir(tmp_path: Path) -> Path:
    """An empty registry directory."""
    path = tmp_path / "registry"
    path.mkdir(mode=0o700)
    path.chmod(0o700)  # independent of the umask
    return path


@pytest.fixture(scope="session")
def _shared_redis() -> Iterator[servers.RedisServer]:
    with servers.redis_server() as server, _shared(server):
        yield server


@pytest.fixture
def redis_url(_shared_redis: servers.RedisServer) -> str:
    """The address of an empty Redis; all tests share the server, so no test may stop it."""
    _shared_redis.flush()
    return _shared_redis.url


@pytest.fixture
def redis_server() -> Iterator[servers.RedisServer]:
    """A Redis that the test may kill and start again."""
    with servers.redis_server() as server:
        yield server


@pytest.fixture(scope="session")
def _shared_rabbitmq() -> Iterator[servers.RabbitMQServer]:
    with servers.rabbitmq_server() as server, _shared(server), _shared(server.epmd):
        yield server


@pytest.fixture
def rabbitmq_url(_shared_rabbitmq: servers.RabbitMQServer) -> Iterator[str]:
    """The address of an empty RabbitMQ virtual host; all tests share the server, so no test may stop it."""
    vhost = f"test-{time.monotonic_ns()}"
    _shared_rabbitmq.add_vhost(vhost)
    yield _shared_rabbitmq.url_of(vhost)
    _shared_rabbitmq.delete_vhost(vhost)


@contextlib.contextmanager
def _shared(server: servers.Server) -> Iterator[None]:
    pid = server.pid
    servers.shared_pids.add(pid)
    yield
    servers.shared_pids.discard(pid)
