"""Real servers for the tests: each on free loopback ports, in its own directory, ended after the test.

A server that cannot be had skips the test that wants it, and fails it when CI=true.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from base64 import b64encode
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, TypeVar

import psutil
import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

START_SECONDS = 60.0
STOP_SECONDS = 20.0

# Debian's rabbitmq-server in /usr/sbin changes the user; the script below it does not.
_PLACES = ("/usr/lib/rabbitmq/bin", "/usr/local/sbin", "/usr/sbin", "/sbin")

# Processes of servers that are shared between tests; the check for left-over processes ignores them.
shared_pids: set[int] = set()


class ServerError(Exception):
    """A server did not start."""


class _PortTakenError(ServerError):
    """Another process has bound the port since it was found free."""


def unavailable(reason: str) -> NoReturn:
    """Skip the test, or fail it when CI=true."""
    if os.environ.get("CI") == "true":
        pytest.fail(f"{reason}, and with CI=true that fails", pytrace=False)
    pytest.skip(reason)


def program(name: str) -> str:
    """The path of a server's program; skip or fail the test without it."""
    search = [*_PLACES[:1], *os.environ.get("PATH", os.defpath).split(os.pathsep), *_PLACES[1:]]
    path = shutil.which(name, path=os.pathsep.join(search))
    if path is None:
        unavailable(f"{name} is not installed (see tools/servers.sh)")
    return path


def free_ports(count: int) -> list[int]:
    """Different loopback ports on which no process listens."""
    with contextlib.ExitStack() as held:
        ports = []
        for _ in range(count):
            sock = held.enter_context(socket.socket())
            sock.bind(("127.0.0.1", 0))
            ports.append(int(sock.getsockname()[1]))
        return ports


def dies_with_us(command: Sequence[str]) -> list[str]:
    """Wrap the command so that the kernel ends it with the thread that starts it, also when pytest is killed."""
    setpriv = shutil.which("setpriv")
    return [setpriv, "--pdeathsig", "TERM", *command] if setpriv else list(command)


class Server:
    """A server process that can be started, killed and started again at the same address.

    Attributes:
        directory: the folder of its data, configuration and log.
        port: the loopback port it serves.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        directory: Path,
        port: int,
        env: Mapping[str, str] | None = None,
    ) -> None:
        self.directory = directory
        self.port = port
        self._name = name
        self._command = dies_with_us(command)
        self._env = {**os.environ, **(env or {})}
        self._log = directory / f"{name}.log"
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id of the running server."""
        assert self._process is not None, f"{self._name} is not running"
        return self._process.pid

    @property
    def log(self) -> str:
        """The server's output."""
        return self._log.read_text(errors="replace") if self._log.exists() else ""

    def answers(self) -> bool:
        """Whether the server works."""
        return _accepts(self.port)

    def start(self) -> None:
        """Start the server and wait until it answers."""
        assert self._process is None, f"{self._name} is running"
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                cwd=self.directory,
                env=self._env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C is for pytest, which then ends servers in order
            )
        try:
            self._wait()
        except BaseException:
            self.kill()
            raise

    def _wait(self) -> None:
        assert self._process is not None
        deadline = time.monotonic() + START_SECONDS
        while not self.answers():
            ended = self._process.poll() is not None
            if ended or time.monotonic() > deadline:
                said = self.log[-4000:]
                error = _PortTakenError if "in use" in said or "eaddrinuse" in said else ServerError
                how = f"ended with {self._process.returncode}" if ended else "did not get ready"
                msg = f"{self._name} {how}:\n{said}"
                raise error(msg)
            time.sleep(0.02)

    def stop(self) -> None:
        """Request its end, and check that it and all its children have ended."""
        self._end(psutil.Process.terminate)

    def kill(self) -> None:
        """SIGKILL it and its children, as in a crash."""
        self._end(psutil.Process.kill)

    def _end(self, how: Callable[[psutil.Process], None]) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        family: list[psutil.Process] = []
        with contextlib.suppress(psutil.NoSuchProcess):
            parent = psutil.Process(process.pid)
            # Found while the parent lives: afterwards their parent is unknown.
            family = parent.children(recursive=True)
            how(parent)
            if how is psutil.Process.kill:
                kill_all(family)
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        _, left = psutil.wait_procs(family, timeout=2)
        kill_all(left)


def kill_all(processes: Sequence[psutil.Process]) -> None:
    """SIGKILL these processes, and ignore those that have ended."""
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


class RedisServer(Server):
    """A Redis without persistence: its data is gone when it is started again."""

    @property
    def url(self) -> str:
        """Its address, for database 0."""
        return f"redis://127.0.0.1:{self.port}/0"

    def answers(self) -> bool:
        """Whether it answers PONG."""
        return _says(self.port, b"PING\r\n", b"+PONG")

    def flush(self) -> None:
        """Delete everything, in all databases."""
        if not _says(self.port, b"FLUSHALL\r\n", b"+OK"):
            msg = f"redis did not flush:\n{self.log}"
            raise ServerError(msg)


class RabbitMQServer(Server):
    """A RabbitMQ node with its own epmd and the management API."""

    management_port: int
    epmd: Server  # without it the node would leave one running

    @property
    def url(self) -> str:
        """Its address, for the default virtual host."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    def answers(self) -> bool:
        """Whether both the broker and the management API work."""
        try:
            self.manage("GET", "overview")
        except OSError:
            return False
        # An impossible version: the server answers with its own.
        return _says(self.port, b"AMQP\x09\x09\x09\x09", b"AMQP")

    def url_of(self, vhost: str) -> str:
        """Its address for another virtual host."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/{vhost}"

    def add_vhost(self, vhost: str) -> None:
        """Make an empty virtual host."""
        self.manage("PUT", f"vhosts/{vhost}", {})
        self.manage("PUT", f"permissions/{vhost}/guest", {"configure": ".*", "write": ".*", "read": ".*"})

    def delete_vhost(self, vhost: str) -> None:
        """Delete a virtual host and all its queues."""
        self.manage("DELETE", f"vhosts/{vhost}")

    def manage(self, method: str, path: str, body: Mapping[str, object] | None = None) -> bytes:
        """Send a request to the management API."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.management_port}/api/{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Content-Type": "application/json",
                "Authorization": "Basic " + b64encode(b"guest:guest").decode(),
            },
        )
        with _direct.open(request, timeout=10) as response:
            answer: bytes = response.read()
        return answer


class PrometheusServer(Server):
    """A Prometheus with an empty database."""

    @property
    def url(self) -> str:
        """Its address, without a final slash."""
        return f"http://127.0.0.1:{self.port}"

    def answers(self) -> bool:
        """Whether it is ready for queries."""
        return _serves(f"{self.url}/-/ready")


class AlertmanagerServer(PrometheusServer):
    """An Alertmanager without alerts or silences."""


S = TypeVar("S", bound=Server)

# No proxy of the environment is used for loopback.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _accepts(port: int) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1):
            return True
    except OSError:
        return False


def _says(port: int, question: bytes, answer: bytes) -> bool:
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=1) as sock:
            sock.sendall(question)
            return sock.recv(len(answer)) == answer
    except OSError:
        return False


def _serves(url: str) -> bool:
    try:
        with _direct.open(url, timeout=1):
            return True
    except urllib.error.HTTPError as error:
        error.close()
        return False
    except OSError:
        return False


@contextlib.contextmanager
def _directory(name: str) -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix=f"jobmetrics-{name}-", ignore_cleanup_errors=True) as path:
        yield Path(path)


@contextlib.contextmanager
def _running(make: Callable[[], S]) -> Iterator[S]:
    for last_try in (False, False, True):
        try:
            server = make()
            server.start()
        except _PortTakenError:
            if last_try:
                raise
        else:
            break
    try:
        yield server
    finally:
        server.stop()


@contextlib.contextmanager
def redis_server(*options: str) -> Iterator[RedisServer]:
    """A separate Redis; options go to its command line."""
    path = program("redis-server")
    with _directory("redis") as directory:

        def make() -> RedisServer:
            (port,) = free_ports(1)
            command = [path, "--bind", "127.0.0.1", "--port", str(port), "--dir", str(directory)]
            command += ["--save", "", "--appendonly", "no", "--daemonize", "no", *options]
            return RedisServer("redis", command, directory, port)

        with _running(make) as server:
            yield server


@contextlib.contextmanager
def rabbitmq_server() -> Iterator[RabbitMQServer]:
    """A separate RabbitMQ node."""
    path = program("rabbitmq-server")
    epmd_path = program("epmd")
    with _directory("rabbitmq") as directory, contextlib.ExitStack() as stack:

        def make() -> RabbitMQServer:
            stack.close()  # the epmd of a failed attempt
            port, management, distribution, epmd_port = free_ports(4)
            loopback = {"ERL_EPMD_ADDRESS": "127.0.0.1", "ERL_EPMD_PORT": str(epmd_port)}
            epmd = Server("epmd", [epmd_path], directory, epmd_port, loopback)
            epmd.start()
            stack.callback(epmd.stop)
            settings = _rabbitmq_settings(directory, port, management)
            env = {**loopback, **settings, "RABBITMQ_DIST_PORT": str(distribution)}
            server = RabbitMQServer("rabbitmq", [path], directory, port, env)
            server.management_port = management
            server.epmd = epmd
            return server

        with _running(make) as server:
            yield server


def _rabbitmq_settings(directory: Path, port: int, management_port: int) -> dict[str, str]:
    """The node's environment: no file of the system's RabbitMQ is read or written."""
    (directory / "enabled_plugins").write_text("[rabbitmq_management].\n")
    (directory / "rabbitmq.conf").write_text(
        f"listeners.tcp.1 = 127.0.0.1:{port}\n"
        "management.tcp.ip = 127.0.0.1\n"
        f"management.tcp.port = {management_port}\n"
        "log.file = false\n"
        "log.console = true\n"
        "log.console.level = warning\n"
        # With little free disk or memory it would otherwise block publishers permanently.
        "disk_free_limit.absolute = 1MB\n"
    )
    return {
        "HOME": str(directory),  # the folder of Erlang's cookie
        "RABBITMQ_NODENAME": f"jobmetrics-{port}@localhost",
        "RABBITMQ_BASE": str(directory),
        "RABBITMQ_CONF_ENV_FILE": str(directory / "none"),
        "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq.conf"),
        "RABBITMQ_CONFIG_FILES": str(directory / "none.d"),
        "RABBITMQ_ADVANCED_CONFIG_FILE": str(directory / "none.config"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "enabled_plugins"),
        "RABBITMQ_MNESIA_BASE": str(directory / "data"),
        "RABBITMQ_LOG_BASE": str(directory / "log"),
        "RABBITMQ_PID_FILE": str(directory / "pid"),
        "RABBITMQ_GENERATED_CONFIG_DIR": str(directory / "config"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} +S 2:2",
    }


@contextlib.contextmanager
def prometheus_server(config: str, history: str = "") -> Iterator[PrometheusServer]:
    """A separate Prometheus, with the given configuration file (YAML).

    Rule files named in the configuration are found if their paths are absolute. history: samples in OpenMetrics that
    are in its database when it starts.
    """
    path = program("prometheus")
    with _directory("prometheus") as directory:
        (directory / "prometheus.yml").write_text(config)
        if history:
            (directory / "history").write_text(history)
            command = [program("promtool"), "tsdb", "create-blocks-from", "openmetrics", "history", "data"]
            subprocess.run(command, cwd=directory, check=True, capture_output=True)

        def make() -> PrometheusServer:
            (port,) = free_ports(1)
            command = [
                path,
                f"--config.file={directory}/prometheus.yml",
                f"--storage.tsdb.path={directory}/data",
                f"--web.listen-address=127.0.0.1:{port}",
                "--web.enable-lifecycle",
                "--log.level=warn",
            ]
            return PrometheusServer("prometheus", command, directory, port)

        with _running(make) as server:
            yield server


@contextlib.contextmanager
def alertmanager_server(config: str) -> Iterator[AlertmanagerServer]:
    """A separate Alertmanager, with the given configuration file (YAML)."""
    path = program("prometheus-alertmanager")
    with _directory("alertmanager") as directory:
        (directory / "alertmanager.yml").write_text(config)

        def make() -> AlertmanagerServer:
            (port,) = free_ports(1)
            command = [
                path,
                f"--config.file={directory}/alertmanager.yml",
                f"--storage.path={directory}/data",
                f"--web.listen-address=127.0.0.1:{port}",
                "--cluster.listen-address=",  # no other instance
                "--log.level=warn",
            ]
            return AlertmanagerServer("alertmanager", command, directory, port)

        with _running(make) as server:
            yield server
