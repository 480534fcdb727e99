"""Other users' processes with the paths of another host: a mount namespace with its own accounts, /run and /tmp.

It needs root. The programs are those of this checkout, below /opt/jobs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.support import servers

ROOT = Path(__file__).resolve().parents[2]

# The programs and the application below /opt/jobs, accounts, /run and a private /tmp.
# Paths that only root may enter (an interpreter below /root), or that the new /tmp hides, are mounted again.
_NAMESPACE = """
set -e
host=$1; venv=$2; app=$3; shift 3
mount -t tmpfs -o mode=755 opt /opt
mkdir -p /opt/jobs/venv /opt/jobs/app /opt/open
mount --bind "$venv" /opt/jobs/venv
mount --bind "$app" /opt/jobs/app
number=0
closed=
for path in $OPEN; do
    number=$((number + 1))
    mkdir /opt/open/$number
    mount --bind "$path" /opt/open/$number
    top=/$(echo "$path" | cut -d / -f 2)
    case " $closed " in *" $top "*) ;; *) closed="$closed $top" ;; esac
done
for place in run etc/passwd etc/group tmp; do
    mount --bind "$host/$place" /$place
done
for top in $closed; do
    [ $top = /tmp ] && continue
    mount -t tmpfs -o mode=755 open $top
done
number=0
for path in $OPEN; do
    number=$((number + 1))
    mkdir -p "$path"
    mount --move /opt/open/$number "$path"
done
cd /opt/jobs/app
exec "$@"
"""


@dataclass(frozen=True)
class ForeignHost:
    """A folder used as /run, /tmp and accounts of a host."""

    path: Path

    def prepare(self) -> None:
        """Make its folders and accounts; skip the test where that is not possible."""
        _wanted()
        for name in ("etc", "run", "tmp"):
            (self.path / name).mkdir(parents=True)
        (self.path / "tmp").chmod(0o1777)
        (self.path / "etc/passwd").write_text("root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n")
        (self.path / "etc/group").write_text("root:x:0:\nnogroup:x:65534:\n")

    def inside(self, *command: str) -> list[str]:
        """The command as root in the namespace, in the folder of the examples."""
        arguments = [str(self.path), str(Path(sys.executable).parents[1]), str(ROOT / "examples"), *command]
        return ["unshare", "--mount", "/bin/sh", "-c", _NAMESPACE, "sh", *arguments]

    def as_user(self, user: str, group: str, more_groups: Sequence[str], *command: str) -> list[str]:
        """The command as an unprivileged user in the namespace, by names or numbers."""
        several = ["--groups", ",".join(more_groups)] if more_groups else ["--clear-groups"]
        identity = ["--reuid", user, "--regid", group, *several, "--bounding-set=-all", "--no-new-privs"]
        return self.inside("setpriv", *identity, *command)

    def environment(self, given: Mapping[str, str]) -> dict[str, str]:
        """The environment of a process in the namespace: the given variables, and a few necessary ones."""
        places = os.pathsep.join(["/opt/jobs/venv/bin", os.environ.get("PATH", os.defpath)])
        kept = {"STARTED_BY_TEST": os.environ["STARTED_BY_TEST"], "OPEN": " ".join(_closed_to_others())}
        return {**kept, "PATH": places, **given}


def _closed_to_others() -> list[str]:
    """Folders that the programs need and that other users cannot enter in the namespace."""
    needed = [Path(sys.base_prefix), Path(sys.prefix), ROOT]
    found: list[Path] = []
    for path in needed:
        real = path.resolve()
        hidden = Path("/tmp") in real.parents  # hidden by the namespace's /tmp
        if hidden or any(not each.stat().st_mode & 0o001 for each in (real, *real.parents)):
            found.append(real)
    return [str(path) for path in found if not any(other != path and other in path.parents for other in found)]


def _wanted() -> None:
    """Skip where programs are missing, or this process is not root or may not mount."""
    for tool in ("setpriv", "unshare"):
        servers.program(tool)
    if os.geteuid() != 0:
        servers.unavailable("only root can run services as several users")
    probe = ["unshare", "--mount", "mount", "-t", "tmpfs", "probe", "/mnt"]
    if shutil.which("mount") is None or subprocess.run(probe, capture_output=True, check=False).returncode:
        servers.unavailable("this process may not mount")
