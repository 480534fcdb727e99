"""The processes of a world, and the Prometheus and Alertmanager that watch all worlds."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import yaml

from jobmetrics.settings import DEFAULT_BUCKETS
from tests.e2e.prometheus_api import PrometheusApi
from tests.support import servers
from tests.support.rule_files import ALERTS, RECORDING, ROOT

if TYPE_CHECKING:
    from tests.incidents.worlds import Stream, Usual, World

PROMETHEUS = ROOT / "deploy" / "prometheus" / "prometheus.yml"
ALERTMANAGER = ROOT / "deploy" / "alertmanager" / "alertmanager.yml"

HISTORY_SECONDS = 26 * 3600  # JobStuck asks for job types that are known for a day
HISTORY_STEP = 240  # below the five minutes for which Prometheus uses a sample
END_SECONDS = 10.0
CHECK_SECONDS = 45  # between the two readings of `jobmetrics check`


class Stage:
    """A world's host: its registry directory, exporter, workers and sender."""

    redis: servers.RedisServer | None = None  # only of a world with its own

    def __init__(self, world: World, base: Path, redis_url: str, port: int, later: Mapping[str, Sequence[str]]) -> None:
        self.world = world
        self.traffic: tuple[Stream, ...] = world.traffic
        self.port = port
        self._folder = base / world.name
        self._folder.mkdir()
        self.directory = self._folder / "registry"
        self.directory.mkdir(mode=0o700)
        self._redis_url = redis_url
        queues = [f"--celery-queue={queue}" for queue in world.queues]
        self._brokers = [f"--rq-url={redis_url}"]
        if any(command[0] == "celery" for command in world.processes.values()):
            self._brokers = [f"--celery-broker={redis_url}", *queues]
        if not world.reads_queues:
            self._brokers = []
        where = ["--dir", str(self.directory), "--listen", f"127.0.0.1:{port}"]
        self._commands: dict[str, Sequence[str]] = {
            **later,
            **world.processes,
            "exporter": ["jobmetrics", "exporter", *where, *self._brokers],
            "sender": ["tests.incidents.send"],
            "check": ["jobmetrics", "check", *where, *self._brokers, "--watch", str(CHECK_SECONDS)],
        }
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    @property
    def _environment(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("JOBMETRICS_")}
        return {
            **kept,
            "CELERY_BROKER_URL": self._redis_url,
            "RQ_REDIS_URL": self._redis_url,
            "JOBMETRICS_DIR": str(self.directory),
            "WORLD_RELEASED": str(self._folder / "released"),
            "C_FORCE_ROOT": "1",
            **self.world.environment,
        }

    def open(self) -> None:
        """Start everything, and send the traffic."""
        for name in ("exporter", "sender", *self.world.processes):
            self.start(name)
        self.send(self.traffic)

    def start(self, name: str) -> None:
        """Start a process. The kernel ends it with the staged run."""
        places = {"REDIS_URL": self._redis_url, "FOLDER/schedule": str(self._folder / "schedule")}
        command = [places.get(word, word) for word in self._commands[name]]
        with (self._folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                servers.dies_with_us([sys.executable, "-m", *command]),
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def end(self, name: str, number: int = signal.SIGTERM) -> None:
        """Signal a process and wait for its end. SIGKILL is for its children as well."""
        process = self._processes[name]
        if process.returncode is None:
            if number == signal.SIGKILL:
                os.killpg(process.pid, number)
            else:
                process.send_signal(number)
        deadline = time.monotonic() + END_SECONDS
        while process.returncode is None and time.monotonic() < deadline:
            # Not waited for: its group keeps its id until its children are killed.
            if os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is not None:
                break
            time.sleep(0.05)
        self._kill(process)

    def close(self) -> None:
        """End all processes."""
        for process in self._processes.values():
            self._kill(process)

    @staticmethod
    def _kill(process: subprocess.Popen[bytes]) -> None:
        """Kill a process and its children, unless it was waited for: another process may have its id by now."""
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                process.stdin.close()

    def send(self, streams: Sequence[Stream]) -> None:
        """Replace what is sent."""
        self.write("sender", json.dumps([asdict(stream) for stream in streams]))

    def write(self, name: str, line: str) -> None:
        """Write a line to a process."""
        stdin = self._processes[name].stdin
        assert stdin is not None
        stdin.write(line.encode() + b"\n")
        stdin.flush()

    def runs(self, name: str) -> bool:
        return name in self._processes and self._processes[name].poll() is None

    def release(self) -> None:
        """Let the jobs that wait end."""
        (self._folder / "released").touch()

    def check(self) -> None:
        """Start `jobmetrics check`, as on the world's host."""
        if "check" not in self._processes:
            self.start("check")

    def checked(self) -> str | None:
        """What `jobmetrics check` found: the line that names an expected alert, or else the first problem.

        Returns:
            "nothing" without a problem, None while the command runs.
        """
        process = self._processes.get("check")
        if process is None or process.poll() is None:
            return None
        lines = (self._folder / "check.log").read_text(errors="replace").splitlines()
        named = [line for line in lines if any(f"(runbook: {name})" in line for name in self.world.expected)]
        problems = [line for line in lines if line.startswith("PROBLEM")]
        return next(iter([*named, *problems]), "nothing")


class Notifications(BaseHTTPRequestHandler):
    """Alertmanager's receiver: the names of the alerts that were sent as firing, by world."""

    sent: ClassVar[dict[str, list[set[str]]]] = {}

    def do_POST(self) -> None:
        document = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        names = {alert["labels"]["alertname"] for alert in document["alerts"] if alert["status"] == "firing"}
        if names:
            self.sent.setdefault(document["groupLabels"].get("job", ""), []).append(names)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Log nothing."""


@contextlib.contextmanager
def watched(worlds: Sequence[World], ports: Sequence[int]) -> Iterator[PrometheusApi]:
    """Prometheus and Alertmanager as shipped, with the history of these worlds; each world is one scrape job."""
    with ExitStack() as stack:
        receiver = ThreadingHTTPServer(("127.0.0.1", 0), Notifications)
        stack.callback(receiver.server_close)
        threading.Thread(target=receiver.serve_forever, daemon=True).start()
        stack.callback(receiver.shutdown)
        routing = yaml.safe_load(ALERTMANAGER.read_text())
        for each in routing["receivers"]:
            each["webhook_configs"] = [{"url": f"http://127.0.0.1:{receiver.server_port}/"}]
        alertmanager = stack.enter_context(servers.alertmanager_server(yaml.safe_dump(routing)))
        config = yaml.safe_load(PROMETHEUS.read_text())
        config["rule_files"] = [str(RECORDING), str(ALERTS)]
        config["alerting"] = {"alertmanagers": [{"static_configs": [{"targets": [f"127.0.0.1:{alertmanager.port}"]}]}]}
        config["scrape_configs"] = [
            {"job_name": world.name, "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
            for world, port in zip(worlds, ports, strict=True)
        ]
        history = "".join(openmetrics({world.name: world.usual for world in worlds if world.usual}, time.time()))
        prometheus = stack.enter_context(servers.prometheus_server(yaml.safe_dump(config), history))
        yield PrometheusApi(prometheus.url)


def openmetrics(usual: Mapping[str, Usual], now: float) -> Iterator[str]:
    """The recorded series of a day of healthy executions, by scrape job, in OpenMetrics."""
    series: dict[str, list[tuple[str, float]]] = {}
    for world, each in usual.items():
        labels = f'job="{world}",system="{each.system}",job_type="tests.incidents.jobs.{each.job}"'
        ended = 15 * 60 / each.every
        of_durations = "job_type:jobs_duration_seconds:"
        for name, value in (
            ("mean_rate30m", each.seconds),
            ("p95_rate30m", _quantile(0.95, each.seconds)),
            ("p99_rate30m", _quantile(0.99, each.seconds)),
            ("p99_high1w", _quantile(0.99, each.seconds)),
        ):
            series.setdefault(of_durations + name, []).append((labels, value))
        counts = series.setdefault("job_type_status:jobs_total:increase15m", [])
        counts.append((f'{labels},status="success"', ended * (1 - each.fail)))
        counts.append((f'{labels},status="failure"', ended * each.fail))
    for name, found in series.items():
        yield f"# TYPE {name} gauge\n"
        for labels, value in found:
            for at in range(int(now) - HISTORY_SECONDS, int(now), HISTORY_STEP):
                yield f"{name}{{{labels}}} {value} {at}\n"
    yield "# EOF\n"


def _quantile(share: float, seconds: float) -> float:
    """What histogram_quantile returns if all executions took this time."""
    place = bisect_left(DEFAULT_BUCKETS, seconds)
    lower = DEFAULT_BUCKETS[place - 1] if place else 0.0
    return lower + share * (DEFAULT_BUCKETS[place] - lower)
