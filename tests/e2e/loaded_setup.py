"""Everything at once: the examples' workers under load and with failures, exporters, and the shipped Prometheus."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.e2e import exporters
from tests.e2e.prometheus_api import PrometheusApi
from tests.support import servers
from tests.support.rule_files import ALERTS, RECORDING, ROOT

SHIPPED = ROOT / "deploy" / "prometheus" / "prometheus.yml"
UNATTENDED = "unattended"  # a queue without workers
NOWHERE = "127.0.0.1:1"  # no process listens there
END_SECONDS = 20.0

CELERY = ("-m", "celery", "-A", "celery_app")
RQ = ("-m", "rq.cli")
TROUBLES = ("--trouble", "failures", "--trouble", "retries")


@dataclass
class Setup:
    """The running processes. rq_worker: one to be killed."""

    prometheus: PrometheusApi
    rq_worker: subprocess.Popen[bytes]


@contextlib.contextmanager
def running(base: Path) -> Iterator[Setup]:
    """Start everything; only servers and exporters are waited for, as after a reboot."""
    with ExitStack() as stack:
        redis = stack.enter_context(servers.redis_server())
        host = _Host(base, redis.url)
        rq_worker = _start_workers(stack, host)
        _start_producers(stack, host)
        troubled = host.directory("troubled")
        troubles = stack.enter_context(host.process("-m", "tests.e2e.troubled_host", directory=troubled, fed=True))
        brokers = [
            f"--celery-broker={redis.url}", "--celery-queue=celery", "--celery-queue=archives",
            f"--celery-queue={UNATTENDED}", f"--rq-url={redis.url}", "--timeout=2",
        ]  # fmt: skip
        exporting = [
            stack.enter_context(exporters.running(directory, base / f"exporter-{directory.name}.log", *options))
            for directory, options in (
                (host.directory("registry"), brokers),
                (troubled, [*brokers, f"--rq-url=down=redis://{NOWHERE}/0"]),
                (base / "missing", []),
            )
        ]
        addresses = [f"{host}:{port}" for host, port in (exporter.address for exporter in exporting)]
        prometheus = _start_prometheus(stack, base, [*addresses, NOWHERE])
        assert troubles.stdin is not None
        troubles.stdin.write(b"\n")
        troubles.stdin.flush()
        yield Setup(prometheus, rq_worker)


def _start_workers(stack: ExitStack, host: _Host) -> subprocess.Popen[bytes]:
    queues = ["--queues", "celery,archives", "--concurrency", "2"]
    stack.enter_context(host.process(*CELERY, "worker", *queues, "--without-gossip", "--without-mingle"))
    stack.enter_context(host.process(*CELERY, "beat", "--schedule", str(host.base / "schedule")))
    stack.enter_context(host.process(*RQ, "cron", "--url", host.url, "rq_app.cron"))
    worker = ["worker", "--url", host.url, "--worker-class", "jobmetrics.rq.Worker", "--with-scheduler"]
    return stack.enter_context(host.process(*RQ, *worker, "high", "default"))


def _start_producers(stack: ExitStack, host: _Host) -> None:
    stack.enter_context(host.process("-m", "tests.e2e.send_trouble", UNATTENDED))
    for module, pause in (("celery_app.produce", "0.5"), ("rq_app.produce", "1.5")):
        stack.enter_context(host.process("-m", module, "--jobs", "7", "--trouble", "crashes", "--trouble", "slow"))
        stack.enter_context(host.process("-m", module, "--every", pause, *TROUBLES))


def _start_prometheus(stack: ExitStack, base: Path, targets: list[str]) -> PrometheusApi:
    """Use the shipped configuration and rules with other addresses and intervals."""
    config = yaml.safe_load(SHIPPED.read_text())
    config["global"] = dict.fromkeys(config["global"], "1s")
    (folder,) = {Path(pattern).parent.name for pattern in config["rule_files"]}
    rules = base / folder
    rules.mkdir()
    for path in (RECORDING, ALERTS):
        groups = yaml.safe_load(path.read_text())
        for group in groups["groups"]:
            group.pop("interval", None)
        (rules / path.name).write_text(yaml.safe_dump(groups))
    config["rule_files"] = [str(base / pattern) for pattern in config["rule_files"]]
    exporter, itself = config["scrape_configs"]
    exporter["static_configs"][0]["targets"] = targets
    server = stack.enter_context(servers.prometheus_server(yaml.safe_dump(config)))
    api = PrometheusApi(server.url)
    itself["static_configs"][0]["targets"] = [f"127.0.0.1:{server.port}"]  # known only now
    (server.directory / "prometheus.yml").write_text(yaml.safe_dump(config))
    api.reload()
    return api


class _Host:
    """Start processes as one user on one host would."""

    def __init__(self, base: Path, url: str) -> None:
        self.base = base
        self.url = url
        self._started = 0

    def directory(self, name: str) -> Path:
        path = self.base / name
        path.mkdir(mode=0o700, exist_ok=True)
        path.chmod(0o700)
        return path

    @contextlib.contextmanager
    def process(
        self, *arguments: str, directory: Path | None = None, fed: bool = False
    ) -> Iterator[subprocess.Popen[bytes]]:
        """A Python process, interrupted at the end. fed: gets a line on standard input when everything is up."""
        self._started += 1
        environment = {name: value for name, value in os.environ.items() if not name.startswith("JOBMETRICS_")}
        environment |= {
            "CELERY_BROKER_URL": self.url,
            "RQ_REDIS_URL": self.url,
            "JOBMETRICS_DIR": str(directory or self.directory("registry")),
            "SHOP_DIR": str(self.directory("shop")),
            "PYTHONPATH": os.pathsep.join([str(ROOT / "examples"), str(ROOT)]),
            "C_FORCE_ROOT": "1",
        }
        if directory is not None:
            environment["JOBMETRICS_MAX_SERIES"] = "1000"
        with (self.base / f"process-{self._started}.log").open("wb") as log:
            started = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                env=environment,
                stdin=subprocess.PIPE if fed else subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        servers.shared_pids.add(started.pid)
        try:
            yield started
        finally:
            end(started)
            servers.shared_pids.discard(started.pid)


def end(process: subprocess.Popen[bytes], number: int = signal.SIGTERM) -> None:
    """End a process and wait for it; SIGKILL it if it does not exit."""
    if process.stdin is not None:
        process.stdin.close()
    if process.poll() is None:
        process.send_signal(number)
    try:
        process.wait(END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
