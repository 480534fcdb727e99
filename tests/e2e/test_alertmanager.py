"""One incident, many alerts, one notification: the shipped rules and inhibit rules on Prometheus and Alertmanager.

An exporter's answers are served from here, as they are before, during and after each incident. The times that alerts
wait (`for`) are a sixtieth of the shipped ones, and the intervals of notifications are short. Thresholds are unchanged.
"""

from __future__ import annotations

import json
import re
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.prometheus_api import PrometheusApi
from tests.support import servers
from tests.support.readings import until
from tests.support.rule_files import ALERTS, RECORDING, ROOT

pytestmark = pytest.mark.full

PROMETHEUS = ROOT / "deploy" / "prometheus" / "prometheus.yml"
ALERTMANAGER = ROOT / "deploy" / "alertmanager" / "alertmanager.yml"
FASTER = 60
GROUP_INTERVAL = 15.0  # seconds: longer than the last alert of an incident takes to end
LIMIT = 120.0  # seconds; limit for a hung test

_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # no proxy for loopback

Samples = dict[str, float]
QUEUES = ("mail", "low")


def healthy(now: float) -> Samples:
    """Two RQ workers with two queues; a job runs every second."""
    samples = {
        'jobmetrics_build_info{version="1"}': 1.0,
        "jobmetrics_directory_up": 1.0,
        'jobmetrics_collector_up{collector="rq",broker="main"}': 1.0,
        'jobs_workers{system="rq"}': 2.0,
        'jobs_worker_capacity{system="rq"}': 2.0,
        'jobs_registered_workers{system="rq",broker="main",state="idle"}': 2.0,
    }
    for name in QUEUES:
        job = f'system="rq",job_type="send",queue_name="{name}"'
        queue = f'system="rq",broker="main",queue_name="{name}"'
        samples |= {
            f"jobs_active{{{job}}}": 0.0,
            f'jobs_total{{{job},status="success"}}': now // 1,
            f"jobs_last_success_timestamp_seconds{{{job}}}": now,
            f"jobs_published_total{{{job}}}": now // 1,
            f"jobs_queue_depth{{{queue}}}": 0.0,
            f"jobs_queue_consumers{{{queue}}}": 2.0,
        }
    return samples


def without_workers(now: float, since: float) -> Samples:
    """The workers were killed, and jobs wait; the broker still knows the workers."""
    samples = healthy(since) | {'jobs_workers{system="rq"}': 0.0, 'jobs_worker_capacity{system="rq"}': 0.0}
    for name in QUEUES:
        queue = f'system="rq",broker="main",queue_name="{name}"'
        samples |= {
            f'jobs_published_total{{system="rq",job_type="send",queue_name="{name}"}}': now // 1,
            f"jobs_queue_depth{{{queue}}}": now - since,
            f"jobs_queue_consumers{{{queue}}}": 0.0,
            # Both times pass their thresholds within 15 seconds.
            f"jobs_queue_oldest_timestamp_seconds{{{queue}}}": since - (600 - 15),
            f"jobs_queue_overdue_oldest_timestamp_seconds{{{queue}}}": since - (300 - 15),
        }
    return samples


def without_broker(now: float) -> Samples:
    """No queue can be read; workers are alive and run nothing."""
    samples = {name: value for name, value in healthy(now).items() if 'broker="main"' not in name}
    return samples | {'jobmetrics_collector_up{collector="rq",broker="main"}': 0.0}


@dataclass
class Exporter:
    """What the exporter shows now. state: healthy, no workers, no broker, or down. since: when it began."""

    state: str = "healthy"
    since: float = 0.0

    def become(self, state: str) -> None:
        self.since = time.time()
        self.state = state

    def answer(self) -> str | None:
        now = time.time()
        if self.state == "down":
            return None
        samples: Mapping[str, float] = {
            "healthy": healthy,
            "no workers": lambda now: without_workers(now, self.since),
            "no broker": without_broker,
        }[self.state](now)
        return "".join(f"{name} {value}\n" for name, value in samples.items())


@dataclass
class Notifications:
    """What Alertmanager sent, in order: its status, and the names of the alerts that fire."""

    sent: list[tuple[str, set[str]]] = field(default_factory=list)
    at: list[float] = field(default_factory=list)

    def receive(self, document: Mapping[str, Any]) -> None:
        names = {alert["labels"]["alertname"] for alert in document["alerts"] if alert["status"] == "firing"}
        self.sent.append((document["status"], names))
        self.at.append(time.monotonic())


@dataclass
class World:
    exporter: Exporter
    notifications: Notifications
    prometheus: PrometheusApi
    alertmanager: str

    def alerts(self) -> dict[str, int]:
        """The number of pending and firing alerts, by the name of the rule."""
        found = {rule["name"]: len(rule.get("alerts", [])) for rule in self.prometheus.rules()}
        return {name: count for name, count in found.items() if count}

    def firing(self) -> dict[str, int]:
        found = {
            rule["name"]: sum(alert["state"] == "firing" for alert in rule.get("alerts", []))
            for rule in self.prometheus.rules()
        }
        return {name: count for name, count in found.items() if count}

    def suppressed(self) -> dict[str, int]:
        """The number of alerts that Alertmanager does not send, by name."""
        with _direct.open(f"{self.alertmanager}/api/v2/alerts", timeout=10) as answer:
            alerts = json.load(answer)
        names = [alert["labels"]["alertname"] for alert in alerts if alert["status"]["state"] == "suppressed"]
        return {name: names.count(name) for name in names}

    def incident(self, state: str, cause: str, consequences: Mapping[str, int]) -> None:
        """Begin and end an incident. Expect these alerts and no other, and one notification of the cause."""
        del self.notifications.sent[:], self.notifications.at[:]
        everything = {cause: 1, **consequences}
        self.exporter.become(state)
        until(lambda: self.firing() == everything, f"these alerts to fire: {self.alerts()}", LIMIT)
        until(lambda: self.suppressed() == dict(consequences), f"them to be held: {self.suppressed()}", LIMIT)
        until(lambda: bool(self.notifications.sent), "the notification", LIMIT)
        # The alerts end within two seconds of each other. Prometheus evaluates groups of rules one after another, and a
        # notification between two of them would name what is left.
        start = self.notifications.at[0]
        phase = (time.monotonic() - start) % GROUP_INTERVAL
        begin = time.monotonic() + (0 if 1 < phase < GROUP_INTERVAL / 3 else GROUP_INTERVAL - phase + 1)
        until(lambda: time.monotonic() >= begin, "the next interval to begin", LIMIT)
        self.exporter.become("healthy")
        until(lambda: not self.alerts(), f"every alert to end: {self.alerts()}", LIMIT)
        until(lambda: self.notifications.sent[-1][0] == "resolved", f"the end: {self.notifications.sent}", LIMIT)
        assert self.notifications.sent == [("firing", {cause}), ("resolved", set())]


@contextmanager
def http_server(handler: type[BaseHTTPRequestHandler]) -> Iterator[int]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield server.server_port
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def exporter_handler(exporter: Exporter) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            answer = exporter.answer()
            self.send_response(200 if answer is not None else 503)
            self.send_header("Content-Type", "text/plain; version=0.0.4")
            self.end_headers()
            self.wfile.write((answer or "").encode())

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


def webhook_handler(notifications: Notifications) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            notifications.receive(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    return Handler


def faster(path: Path) -> str:
    """The rules of a file, with shorter waits."""
    document = yaml.safe_load(path.read_text())
    for group in document["groups"]:
        group.pop("interval", None)
        for rule in group["rules"]:
            if "for" in rule:
                (minutes,) = re.fullmatch(r"(\d+)m", rule["for"]).groups()  # type: ignore[union-attr]  # it matches
                rule["for"] = f"{int(minutes) * 60 // FASTER}s"
    text: str = yaml.safe_dump(document)
    return text


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    exporter, notifications = Exporter(), Notifications()
    base = tmp_path_factory.mktemp("alertmanager")
    with ExitStack() as stack:
        target = stack.enter_context(http_server(exporter_handler(exporter)))
        webhook = stack.enter_context(http_server(webhook_handler(notifications)))

        settings = yaml.safe_load(ALERTMANAGER.read_text())
        settings["route"] |= {"group_wait": "1s", "group_interval": f"{GROUP_INTERVAL:.0f}s"}
        settings["receivers"][0]["webhook_configs"][0]["url"] = f"http://127.0.0.1:{webhook}/"
        alertmanager = stack.enter_context(servers.alertmanager_server(yaml.safe_dump(settings)))

        config = yaml.safe_load(PROMETHEUS.read_text())
        config["global"] = dict.fromkeys(config["global"], "1s")
        (base / "rules").mkdir()
        for path in (RECORDING, ALERTS):
            (base / "rules" / path.name).write_text(faster(path))
        config["rule_files"] = [str(base / pattern) for pattern in config["rule_files"]]
        config["scrape_configs"] = config["scrape_configs"][:1]
        config["scrape_configs"][0]["static_configs"][0]["targets"] = [f"127.0.0.1:{target}"]
        config["alerting"] = {"alertmanagers": [{"static_configs": [{"targets": [f"127.0.0.1:{alertmanager.port}"]}]}]}
        prometheus = stack.enter_context(servers.prometheus_server(yaml.safe_dump(config)))
        started = World(exporter, notifications, PrometheusApi(prometheus.url), alertmanager.url)
        until(lambda: started.prometheus.finds("system:jobs_workers:sum == 2"), "the first reading", LIMIT)
        until(lambda: not started.alerts(), f"no alert: {started.alerts()}", LIMIT)
        yield started


def test_all_workers_gone_is_one_notification(world: World) -> None:
    world.incident(
        "no workers",
        "JobWorkersGone",
        {
            "JobWorkersGoneFromHost": 1,
            "JobQueueOld": 2,
            "JobQueueUnattended": 2,
            "RqSchedulerLate": 2,
            "JobmetricsRecordingOff": 1,
        },
    )


def test_an_exporter_that_is_down_is_one_notification(world: World) -> None:
    world.incident("down", "JobmetricsExporterDown", {"JobmetricsAbsent": 1})


def test_a_broker_that_cannot_be_read_is_one_notification(world: World) -> None:
    world.incident("no broker", "JobmetricsCollectorDown", {})
