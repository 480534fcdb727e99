"""The systemd units: verified by systemd, and run as their users, from the shipped files, at their paths."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.exporters import Exposed
from tests.e2e.services import get, running
from tests.support import servers
from tests.support.foreign_host import ROOT
from tests.support.readings import until
from tests.support.readme_commands import commands
from tests.support.systemd_units import SERVICES, UNITS, UnitHost

pytestmark = pytest.mark.full

LIMIT = 120.0  # limit for a hung test


@pytest.fixture
def host(tmp_path: Path) -> UnitHost:
    servers.program("systemd-analyze")
    made = UnitHost(tmp_path / "host")
    made.prepare()
    return made


@pytest.mark.parametrize("name", SERVICES)
def test_systemd_accepts_the_unit(host: UnitHost, name: str) -> None:
    command = host.inside("systemd-analyze", "verify", "--man=no", str(UNITS / f"{name}.service"))
    done = subprocess.run(command, env=host.of_unit(name, {}), capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("name", SERVICES)
def test_services_are_confined(name: str) -> None:
    servers.program("systemd-analyze")
    # Tenths of systemd's scale from 0 (fully confined) to 10; what remains is network, files and /proc.
    command = ["systemd-analyze", "security", "--offline=yes", "--threshold=20", "--no-pager"]
    done = subprocess.run([*command, str(UNITS / f"{name}.service")], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_readme_installs_them(tmp_path: Path) -> None:
    host = UnitHost(tmp_path / "host")
    host.prepare()
    installing = commands(UNITS.parent / "README.md", "install", "systemd-sysusers", "systemd-tmpfiles")
    assert len(installing) == 5
    # On a copy of /etc, so that this host's files do not change.
    script = f"""
        set -e
        cp -a /etc {tmp_path}/etc && mount --bind {tmp_path}/etc /etc
        mkdir {tmp_path}/run && mount --bind {tmp_path}/run /run
        cd {ROOT}
    """ + "\n".join(installing)
    done = subprocess.run(["unshare", "--mount", "/bin/sh", "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in SERVICES:
        unit = tmp_path / f"etc/systemd/system/{name}.service"
        assert unit.read_text() == (UNITS / unit.name).read_text()
    assert stat.S_IMODE((tmp_path / "run/jobmetrics").stat().st_mode) == 0o2770
    assert "\njobmetrics:x:" in (tmp_path / "etc/group").read_text()
    assert "\njobmetrics:x:" not in Path("/etc/group").read_text()


@contextlib.contextmanager
def notifications(host: UnitHost) -> Iterator[socket.socket]:
    """The socket on which systemd waits for the readiness of a service of Type=notify."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        path = host.path / "run/notify"
        before = Path.cwd()
        os.chdir(path.parent)  # the whole path may exceed the length of a socket address
        try:
            sock.bind(path.name)
        finally:
            os.chdir(before)
        path.chmod(0o666)
        sock.settimeout(LIMIT)
        yield sock


def test_services_of_three_users_share_the_directory(host: UnitHost, redis_url: str, tmp_path: Path) -> None:
    (port,) = servers.free_ports(1)
    url = f"http://127.0.0.1:{port}/metrics"
    brokers = {"CELERY_BROKER_URL": redis_url, "RQ_REDIS_URL": redis_url}
    listening = {"JOBMETRICS_LISTEN": f"127.0.0.1:{port}", "NOTIFY_SOCKET": "/run/notify"}
    with contextlib.ExitStack() as stack:
        heard = stack.enter_context(notifications(host))
        exporter = host.of_unit("jobmetrics-exporter", listening)
        log = tmp_path / "exporter.log"
        process = stack.enter_context(running(host.service("jobmetrics-exporter"), exporter, log))
        heard.settimeout(1.0)

        def ready() -> bool:
            assert process.poll() is None, log.read_text()
            try:
                return heard.recv(100) == b"READY=1"
            except TimeoutError:
                return False

        until(ready, "READY=1", LIMIT)
        for name, producer in (("jobmetrics-celery", "celery_app.produce"), ("jobmetrics-rq", "rq_app.produce")):
            environment = host.of_unit(name, brokers)
            stack.enter_context(running(host.service(name), environment, tmp_path / f"{name}.log"))
            produce = ["/opt/jobs/venv/bin/python", "-m", producer, "--jobs", "5", "--damage-every", "100"]
            subprocess.run(host.as_service(name, *produce), env=environment, check=True, timeout=LIMIT)

        def everything_is_counted() -> bool:
            seen = Exposed(get(url))
            ended = [dict(key[1]) for key, value in seen.values.items() if key[0] == "jobs_total" and value]
            succeeded = [one["system"] for one in ended if one["status"] == "success"]
            return succeeded.count("celery") == 5 and succeeded.count("rq") == 5

        until(everything_is_counted, "five kinds of jobs of each system", LIMIT)
        seen = Exposed(get(url))
        for system in ("celery", "rq"):
            assert seen("jobs_workers", system=system) == 1
            assert (seen("jobs_worker_resident_memory_bytes", system=system) or 0) > 1e6

        directory = host.path / "run/jobmetrics"
        group = host.number("group", "jobmetrics")
        info = directory.stat()
        assert (info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode)) == (0, group, 0o2770)
        files = [path.stat() for path in directory.iterdir()]
        assert {each.st_uid for each in files} == {host.number("passwd", "celery"), host.number("passwd", "rq")}
        assert {(each.st_gid, stat.S_IMODE(each.st_mode)) for each in files} == {(group, 0o660)}

        dump = ["/opt/jobs/venv/bin/jobmetrics", "dump"]
        member = subprocess.run(
            host.as_service("jobmetrics-exporter", *dump),
            env=exporter, capture_output=True, text=True, check=False,
        )  # fmt: skip
        stranger = subprocess.run(
            host.as_user("nobody", "nogroup", [], *dump), env=exporter, capture_output=True, text=True, check=False
        )
        assert Exposed(member.stdout)("jobmetrics_directory_up") == 1, member.stderr
        assert "jobs_total{" in member.stdout
        assert "jobs_total{" not in stranger.stdout
