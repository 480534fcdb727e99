"""deploy/systemd: the units as data, and as commands of their users on a simulated host."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path

from tests.support import servers
from tests.support.foreign_host import ForeignHost

UNITS = Path(__file__).resolve().parents[2] / "deploy" / "systemd"
SERVICES = ("jobmetrics-celery", "jobmetrics-rq", "jobmetrics-exporter")


def read_unit(name: str) -> dict[str, list[str]]:
    """The settings of a unit's section [Service], each with all its values."""
    found: dict[str, list[str]] = {}
    section = ""
    for line in (UNITS / f"{name}.service").read_text().splitlines():
        if line.startswith("["):
            section = line
        elif section == "[Service]" and "=" in line and not line.startswith("#"):
            key, _, value = line.partition("=")
            found.setdefault(key, []).append(value)
    return found


class UnitHost(ForeignHost):
    """A host on which the units are installed."""

    def prepare(self) -> None:
        """Make the accounts and the directory from the shipped files, with systemd's tools."""
        super().prepare()
        for tool, *arguments in (
            ("systemd-sysusers", str(UNITS / "jobmetrics.sysusers.conf")),
            ("systemd-tmpfiles", "--create", str(UNITS / "jobmetrics.tmpfiles.conf")),
        ):
            command = [servers.program(tool), f"--root={self.path}", *arguments]
            subprocess.run(command, check=True, capture_output=True)

    def number(self, kind: str, name: str) -> int:
        """A user's or group's number; kind: passwd or group."""
        lines = (self.path / "etc" / kind).read_text().splitlines()
        return next(int(line.split(":")[2]) for line in lines if line.startswith(f"{name}:"))

    def as_service(self, name: str, *command: str) -> list[str]:
        """The command as a unit's user, in its groups."""
        unit = read_unit(name)
        (user,) = unit["User"]
        return self.as_user(user, user, unit["SupplementaryGroups"], *command)

    def service(self, name: str) -> list[str]:
        """A unit's ExecStart as its user."""
        (command,) = read_unit(name)["ExecStart"]
        return self.as_service(name, *shlex.split(command.replace("%H", os.uname().nodename)))

    def of_unit(self, name: str, given: Mapping[str, str]) -> dict[str, str]:
        """A unit's environment; given: variables of its EnvironmentFile and those the test needs."""
        return self.environment({**dict(pair.split("=", 1) for pair in read_unit(name)["Environment"]), **given})
