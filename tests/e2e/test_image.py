"""The Dockerfile without Docker: run its RUN lines in folders, then run the installed package.

Libraries are those of this environment; the package is installed as a wheel, without the checkout.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from tests.e2e.services import get, running
from tests.support import servers
from tests.support.compose import ROOT
from tests.support.dockerfile import Stage, stages
from tests.support.readings import until

pytestmark = pytest.mark.full

LIMIT = 200.0  # limit for a hung test


class Built:
    """A stage and its parents, built in a folder."""

    def __init__(self, root: Path, stage: str) -> None:
        self.root, self.venv = root, root / "venv"
        found = stages(ROOT / "Dockerfile")
        line: list[Stage] = []
        while stage in found:
            line.insert(0, found[stage])
            stage = found[stage].parent
        self._folder = root
        for each in line:
            if each.name != "base":  # its accounts belong to the image, not to this host
                self._build(each)

    def _build(self, stage: Stage) -> None:
        for name, argument in stage.instructions:
            if name == "WORKDIR":
                self._folder = self.root / argument.lstrip("/")
                self._folder.mkdir()
            elif name == "COPY":
                *sources, target = argument.split()
                for source in sources:
                    self._copy(ROOT / source, self._folder / target)
            elif name == "RUN":
                self._run(argument)

    def _copy(self, source: Path, target: Path) -> None:
        if source.is_dir():
            shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, target)

    def _run(self, line: str) -> None:
        command = re.sub(r"(?<![\w.])/venv\b", str(self.venv), line)
        done = subprocess.run(
            ["/bin/sh", "-c", command],
            cwd=self._folder, env=self.environment, capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        libraries = self.venv / Path(sysconfig.get_path("purelib")).relative_to(sys.prefix)
        # In a .pth file: nested .pth files are not read, so the package of this checkout is not found.
        (libraries / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")

    @property
    def environment(self) -> dict[str, str]:
        offline = {"PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0", "PIP_NO_INDEX": "1"}
        places = os.pathsep.join([str(self.venv / "bin"), str(Path(sys.executable).parent), os.environ["PATH"]])
        inherited = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        return {**inherited, **offline, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PATH": places, "NO_COLOR": "1"}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    return Built(tmp_path_factory.mktemp("image"), "build-exporter")


def test_the_package_is_the_one_in_the_image(built: Built, tmp_path: Path) -> None:
    code = "import jobmetrics; print(jobmetrics.__file__)"
    done = subprocess.run(
        [built.venv / "bin/python", "-c", code],
        cwd=tmp_path, env=built.environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_relative_to(built.venv), done.stdout


def test_the_exporters_entrypoint_serves(built: Built, tmp_path: Path) -> None:
    stage = stages(ROOT / "Dockerfile")["exporter"]
    (port,) = servers.free_ports(1)
    settings = dict(pair.split("=", 1) for line in stage.all("ENV") for pair in line.split())
    assert settings["JOBMETRICS_LISTEN"].endswith(f":{stage.all('EXPOSE')[0]}")
    settings |= {"JOBMETRICS_DIR": str(tmp_path / "registry"), "JOBMETRICS_LISTEN": f"127.0.0.1:{port}"}
    command = json.loads(stage.all("ENTRYPOINT")[0])
    with running(command, {**built.environment, **settings}, tmp_path / "exporter.log", tmp_path):
        until(lambda: get(f"http://127.0.0.1:{port}/healthz") == "ok\n", "the exporter to serve", LIMIT)
