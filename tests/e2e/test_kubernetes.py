"""The pods' containers on this host: their commands, users, groups and probes, on a volume as Kubernetes makes it."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import stat
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e.exporters import Exposed
from tests.e2e.services import get, running
from tests.support import servers
from tests.support.dockerfile import stages
from tests.support.foreign_host import ROOT, ForeignHost
from tests.support.readings import until
from tests.support.readme_commands import commands

pytestmark = pytest.mark.full

LIMIT = 120.0  # limit for a hung test


class Pod:
    """The pod of one manifest, as commands on a simulated host."""

    def __init__(self, host: ForeignHost, name: str, secrets: Mapping[str, str], port: int) -> None:
        self._host, self._secrets, self._port = host, secrets, str(port)
        document = yaml.safe_load((ROOT / "deploy/kubernetes" / f"{name}.yaml").read_text())
        self.spec: dict[str, Any] = document["spec"]["template"]["spec"]
        self.containers = {each["name"]: each for each in self.spec["containers"]}
        for volume in self.spec.get("volumes", []):
            for mount in (each for one in self.containers.values() for each in one.get("volumeMounts", [])):
                if mount["name"] == volume["name"]:
                    self._empty_dir(host.path / mount["mountPath"].lstrip("/"))

    def _empty_dir(self, path: Path) -> None:
        # As the kubelet makes an emptyDir: owned by root, open to all, with the pod's group and setgid.
        path.mkdir(exist_ok=True)
        os.chown(path, 0, self.spec["securityContext"]["fsGroup"])
        path.chmod(0o2777)

    def _stage(self, container: Mapping[str, Any]) -> Any:
        """The Dockerfile stage of a container's image, by the README's names."""
        built = commands(ROOT / "deploy/README.md", "docker")
        (line,) = [words for words in map(str.split, built) if container["image"] in words]
        return stages(ROOT / "Dockerfile")[line[line.index("--target") + 1]]

    def command(self, name: str, *instead: str) -> list[str]:
        """Run a container's command, or another one, with its user and groups."""
        container = self.containers[name]
        entrypoint = self._stage(container).all("ENTRYPOINT")
        words = container.get("command") or json.loads(entrypoint[-1])
        context = container["securityContext"]
        groups = self.spec["securityContext"].get("fsGroup")
        return self._host.as_user(
            str(context["runAsUser"]),
            str(context["runAsGroup"]),
            [] if groups is None else [str(groups)],
            *(instead or map(str, [*words, *container.get("args", [])])),
        )

    def environment(self, name: str) -> dict[str, str]:
        """A container's environment: the image's, then the manifest's."""
        container = self.containers[name]
        found = {"HOSTNAME": socket.gethostname()}
        for line in self._stage(container).all("ENV"):
            found.update(pair.split("=", 1) for pair in line.split())
        for each in container["env"]:
            secret = each.get("valueFrom", {}).get("secretKeyRef", {}).get("key")
            found[each["name"]] = each["value"] if secret is None else self._secrets[secret]
        found["JOBMETRICS_LISTEN"] = f"127.0.0.1:{self._port}"  # a free port of this host
        return self._host.environment(found)

    def probe(self, name: str, kind: str) -> bool:
        """Whether a container's probe succeeds."""
        probe = self.containers[name][kind]
        if "httpGet" in probe:
            return bool(get(f"http://127.0.0.1:{self._port}{probe['httpGet']['path']}"))
        command = self.command(name, *probe["exec"]["command"])
        return not subprocess.run(command, env=self.environment(name), capture_output=True, check=False).returncode


@pytest.fixture
def host(tmp_path: Path) -> ForeignHost:
    made = ForeignHost(tmp_path / "host")
    made.prepare()
    return made


def test_the_exporter_reads_the_directory_of_a_worker_of_another_user(
    host: ForeignHost, redis_url: str, tmp_path: Path
) -> None:
    (port,) = servers.free_ports(1)
    pod = Pod(host, "celery-worker", {"celery": redis_url}, port)
    with contextlib.ExitStack() as stack:
        exporter = stack.enter_context(
            running(pod.command("exporter"), pod.environment("exporter"), tmp_path / "exporter.log")
        )
        until(lambda: pod.probe("exporter", "livenessProbe"), "the exporter to live", LIMIT)
        assert not pod.probe("exporter", "readinessProbe")
        assert not pod.probe("worker", "livenessProbe")
        worker = stack.enter_context(running(pod.command("worker"), pod.environment("worker"), tmp_path / "worker.log"))
        until(lambda: pod.probe("worker", "livenessProbe"), "the worker to answer", LIMIT)
        produce = pod.command("worker", "python", "-m", "celery_app.produce", "--jobs", "5", "--damage-every", "100")
        subprocess.run(produce, env=pod.environment("worker"), check=True, timeout=LIMIT)

        def everything_is_counted() -> bool:
            seen = Exposed(get(f"http://127.0.0.1:{port}/metrics"))
            ended = [dict(key[1]) for key, value in seen.values.items() if key[0] == "jobs_total" and value]
            return [one["status"] for one in ended].count("success") == 5

        until(everything_is_counted, "five kinds of jobs", LIMIT)
        assert pod.probe("exporter", "readinessProbe")
        assert (exporter.poll(), worker.poll()) == (None, None)
        info = (host.path / "run/jobmetrics/registry").stat()
        assert (info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode)) == (10001, 10001, 0o2770)


def test_the_queues_are_read_in_one_place(host: ForeignHost, redis_url: str, tmp_path: Path) -> None:
    (port,) = servers.free_ports(1)
    pod = Pod(host, "queues", {"celery": redis_url, "rq": redis_url}, port)
    directory = host.path / "run/jobmetrics"  # present in the image
    directory.mkdir(mode=0o700)
    os.chown(directory, 10001, 10001)
    with running(pod.command("exporter"), pod.environment("exporter"), tmp_path / "exporter.log"):
        for kind in ("livenessProbe", "readinessProbe"):
            until(lambda kind=kind: pod.probe("exporter", kind), kind, LIMIT)  # type: ignore[misc]  # mypy cannot infer a lambda with a default
        url = f"http://127.0.0.1:{port}/metrics"
        until(lambda: "jobs_queue_depth" in get(url), "the depth of the queues", LIMIT)
        seen = Exposed(get(url))
        for queue in ("celery", "archives"):
            assert seen("jobs_queue_depth", system="celery", broker="default", queue_name=queue) == 0
        assert seen("jobmetrics_collector_up", collector="rq", broker="default") == 1
        assert seen("jobmetrics_directory_up") == 1
