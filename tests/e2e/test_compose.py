"""docker-compose.yml without Docker: each service's command and health check, on this host."""

from __future__ import annotations

import contextlib
import json
import subprocess
import urllib.parse
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from tests.e2e.exporters import Exposed
from tests.e2e.services import get, running
from tests.support import servers
from tests.support.compose import Host, load, workdir
from tests.support.readings import until

pytestmark = pytest.mark.full

WORKERS = ("celery-worker", "celery-beat", "celery-producer", "rq-worker", "rq-cron", "rq-producer")
LIMIT = 120.0  # a hang guard


def service(
    host: Host, name: str, logs: Path, *more: str
) -> contextlib.AbstractContextManager[subprocess.Popen[bytes]]:
    """The service's process."""
    return running([*host.command(name), *more], host.environment(name), logs / f"{name}.log", workdir(name))


def ask_prometheus(port: str, path: str, **parameters: str) -> dict[str, Any]:
    text = get(f"http://127.0.0.1:{port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}")
    return dict(json.loads(text)["data"]) if text else {}


@pytest.fixture
def host(tmp_path: Path, rabbitmq_url: str) -> Host:
    redis, exporter, prometheus = map(str, servers.free_ports(3))
    made = Host(
        tmp_path / "root",
        {
            "amqp://jobs:jobs@rabbitmq:5672//": rabbitmq_url,
            "redis:6379": f"127.0.0.1:{redis}",
            "exporter:9909": f"127.0.0.1:{exporter}",
            "0.0.0.0": "127.0.0.1",
            "6379": redis,
            "9909": exporter,
            "9090": prometheus,
        },
    )
    made.prepare()
    return made


def test_all_services_start_and_are_scraped(host: Host, tmp_path: Path) -> None:
    for name in ("redis-server", "redis-cli", "prometheus", "wget"):
        servers.program(name)
    exporter, prometheus = host.places["9909"], host.places["9090"]
    processes: dict[str, subprocess.Popen[bytes]] = {}

    def healthy(name: str) -> bool:
        assert processes[name].poll() is None, (tmp_path / f"{name}.log").read_text()
        return host.healthy(name).returncode == 0

    with contextlib.ExitStack() as running:

        def start(name: str, *more: str) -> None:
            processes[name] = running.enter_context(service(host, name, tmp_path, *more))

        start("redis", "--bind", "127.0.0.1", "--dir", str(host.root / "data"))
        until(lambda: healthy("redis"), "Redis", LIMIT)
        for name in (*WORKERS, "exporter", "prometheus"):
            start(name)
        for name, described in load()["services"].items():
            if name in processes and "healthcheck" in described:
                until(lambda name=name: healthy(name), f"{name} to be healthy", LIMIT)  # type: ignore[misc]  # mypy cannot infer a lambda with a default

        def everything_is_counted() -> bool:
            text = get(f"http://127.0.0.1:{exporter}/metrics")
            if not text:
                return False
            seen = Exposed(text)
            ended = [dict(labels) for name, labels in seen.values if name == "jobs_total"]
            depths = [dict(labels) for name, labels in seen.values if name == "jobs_queue_depth"]
            return (
                {one["queue_name"] for one in ended} == {"celery", "archives", "high", "default"}
                and {(one["system"], one["queue_name"]) for one in depths}
                == {("celery", "celery"), ("celery", "archives"), ("rq", "high"), ("rq", "default")}
                and seen("jobmetrics_collector_up", collector="celery", broker="default") == 1
                and seen("jobmetrics_collector_up", collector="rq", broker="default") == 1
                and seen("jobs_workers", system="celery") == 1
                and seen("jobs_workers", system="rq") == 1
                and any(name == "shop_revenue_euros_total" for name, _ in seen.values)
                and any(name == "jobs_schedule_next_due_timestamp_seconds" for name, _ in seen.values)
                and any(one["job_type"] == "rq_app.jobs.clean_up" for one in ended)
            )

        until(everything_is_counted, "jobs of every queue in /metrics", LIMIT)
        until(
            lambda: bool(ask_prometheus(prometheus, "query", query='jobs_total{job="jobmetrics"}').get("result")),
            "Prometheus to have scraped",
            LIMIT,
        )
        assert ask_prometheus(prometheus, "rules")["groups"]
        for name, process in processes.items():
            assert process.poll() is None, (tmp_path / f"{name}.log").read_text()


def test_health_checks_fail_where_nothing_runs(host: Host) -> None:
    for name in ("redis", "celery-beat", "rq-worker", "rq-cron", "exporter", "prometheus"):
        assert host.healthy(name).returncode != 0, name


def test_health_checks_of_rq_leave_dead_workers_and_schedulers_in_its_lists(host: Host, tmp_path: Path) -> None:
    """RQ removes them when asked for a list, which would hide them from the exporter and its alerts."""
    with (
        service(host, "redis", tmp_path, "--bind", "127.0.0.1", "--dir", str(host.root / "data")),
        Redis(port=int(host.places["6379"])) as client,
    ):
        until(lambda: host.healthy("redis").returncode == 0, "Redis", LIMIT)
        client.sadd("rq:queues", "rq:queue:high")
        for workers in ("rq:workers", "rq:workers:high"):
            client.sadd(workers, "rq:worker:dead")
        client.zadd("rq:cron_schedulers", {"dead": 1.0})
        for name in ("rq-worker", "rq-cron"):
            assert host.healthy(name).returncode == 1, name
        assert client.scard("rq:workers") == client.scard("rq:workers:high") == client.zcard("rq:cron_schedulers") == 1


def test_rabbitmq_health_check_reports_whether_it_listens(host: Host, request: pytest.FixtureRequest) -> None:
    server: servers.RabbitMQServer = request.getfixturevalue("_shared_rabbitmq")
    names = ("HOME", "ERL_EPMD_ADDRESS", "ERL_EPMD_PORT", "RABBITMQ_CONF_ENV_FILE", "RABBITMQ_NODENAME")
    node = {name: server._env[name] for name in names}  # the variables by which its tools find it
    found = host.healthy("rabbitmq", node)
    assert found.returncode == 0, found.stdout + found.stderr
    nowhere = host.healthy("rabbitmq", {**node, "RABBITMQ_NODENAME": "nobody@localhost"})
    assert nowhere.returncode != 0


def test_producers_exit_on_sigterm(host: Host, tmp_path: Path) -> None:
    servers.program("redis-server")
    folder = host.root / "var/lib/shop"
    with service(host, "redis", tmp_path, "--bind", "127.0.0.1", "--dir", str(host.root / "data")):
        until(lambda: host.healthy("redis").returncode == 0, "Redis", LIMIT)
        for name in ("celery-producer", "rq-producer"):
            for path in folder.iterdir():
                path.unlink()
            with service(host, name, tmp_path) as process:
                until(lambda: any(folder.iterdir()), "files", LIMIT)
                process.terminate()
                assert process.wait(LIMIT) == 0
            assert "jobs sent" in (tmp_path / f"{name}.log").read_text()
