"""docker-compose.yml's services as commands for this host, with other paths, hosts and ports."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.support.dockerfile import stages

ROOT = Path(__file__).resolve().parents[2]
FILE = ROOT / "docker-compose.yml"
HEALTH_SECONDS = 60.0  # limit for a hung server

# Debian's RabbitMQ tools in /usr/sbin change the user.
RABBITMQ_TOOLS = "/usr/lib/rabbitmq/bin"


def load() -> dict[str, Any]:
    """The parsed file, with merges resolved."""
    document: dict[str, Any] = yaml.safe_load(FILE.read_text())
    return document


@dataclass(frozen=True)
class Host:
    """Replaces Docker.

    root: the / of containers, shared by all of them.
    places: replacements of hosts and ports, longest names first.
    """

    root: Path
    places: Mapping[str, str]

    def prepare(self) -> None:
        """Make every volume, and copy mounted files from the repository, with hosts and ports replaced."""
        for service in load()["services"].values():
            for source, target in mounts(service):
                inside = self.root / target.lstrip("/")
                if not source.startswith("./"):
                    inside.mkdir(mode=0o700, parents=True, exist_ok=True)
                elif (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, inside, dirs_exist_ok=True)
                else:
                    inside.parent.mkdir(parents=True, exist_ok=True)
                    inside.write_text(self.placed((ROOT / source).read_text()))

    def placed(self, text: str) -> str:
        """Replace hosts, ports and paths of containers by those of this host."""
        for old, new in self.places.items():
            text = text.replace(old, new)
        folders = {target for service in load()["services"].values() for _, target in mounts(service)}
        pattern = "|".join(re.escape(folder) for folder in sorted(folders, key=len, reverse=True))
        return re.sub(rf"(?<![\w/.])({pattern})(?![\w-])", lambda found: f"{self.root}{found[1]}", text)

    def command(self, name: str) -> list[str]:
        """The command of the container."""
        service = load()["services"][name]
        words = [*_entrypoint(service), *service.get("command", [])]
        return [self.placed(str(word).replace("$$", "$")) for word in words]

    def environment(self, name: str) -> dict[str, str]:
        """The container's environment; PATH has this Python's environment first, then the system."""
        given = load()["services"][name].get("environment", {})
        places = [str(Path(sys.executable).parent), RABBITMQ_TOOLS, os.environ.get("PATH", os.defpath), "/usr/sbin"]
        return {
            **os.environ,
            "PATH": os.pathsep.join(places),
            "HOSTNAME": socket.gethostname(),
            **{key: self.placed(str(value)) for key, value in given.items()},
        }

    def healthy(self, name: str, environment: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
        """Run the service's health check once."""
        kind, *words = load()["services"][name]["healthcheck"]["test"]
        words = [self.placed(word.replace("$$", "$")) for word in words]
        return subprocess.run(
            ["/bin/sh", "-c", *words] if kind == "CMD-SHELL" else words,
            cwd=workdir(name),
            env={**self.environment(name), **(environment or {})},
            capture_output=True,
            text=True,
            timeout=HEALTH_SECONDS,
            check=False,
        )


def mounts(service: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(source, target) of every mount; a tmpfs has no source."""
    parts = [mount.split(":") for mount in service.get("volumes", [])]
    return [(part[0], part[1]) for part in parts] + [("", target) for target in service.get("tmpfs", [])]


def stage_of(service: Mapping[str, Any]) -> str | None:
    """The stage of the project's Dockerfile that a service runs; None for another image."""
    target = service.get("build", {}).get("target")
    return None if target is None else str(target)


def workdir(name: str) -> Path:
    """The folder of this checkout that is the container's working directory."""
    stage = stage_of(load()["services"][name])
    if stage is None:
        return ROOT
    instructions = stages(ROOT / "Dockerfile")[stage]
    pairs = [line.split() for line in instructions.all("COPY") if not line.startswith("--from")]
    copied = {pair[1]: pair[0] for pair in pairs}
    return next((ROOT / copied[folder] for folder in instructions.all("WORKDIR") if folder in copied), ROOT)


def _entrypoint(service: Mapping[str, Any]) -> list[str]:
    stage = stage_of(service)
    if stage is None:
        programs = {"prom/prometheus": ["prometheus"]}  # the entrypoint of the image
        return programs.get(str(service["image"]).split(":")[0], [])
    found = stages(ROOT / "Dockerfile")[stage].all("ENTRYPOINT")
    return [str(word) for word in json.loads(found[-1])] if found else []
