"""Celery's own tests on the installed Celery, bare and with the plugin: t/unit, and t/integration on prefork and Redis.

    python tests/upstream/celery_suite.py fetch DIRECTORY      # then install DIRECTORY/requirements.txt
    python tests/upstream/celery_suite.py compare DIRECTORY [tests such as t/unit/worker]

The tests come from the source distribution of the installed version, by pip, and are not kept. `compare` starts a Redis
of its own. Exit code 1 when a test's result differs in each of a few runs, or when nothing was recorded.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tarfile
import tempfile
import time
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

PLUGIN = ("-p", "jobmetrics.celery.plugin")  # importing it turns recording on, as `imports` does in a worker
CANVAS = "t/integration/test_canvas.py"  # waits as long as all other integration tests together
PARTS = (("t/unit",), (CANVAS,), ("t/integration", f"--ignore={CANVAS}"))
REQUIREMENTS = ("test.txt", "test-ci-base.txt", "extras/redis.txt", "extras/django.txt")  # Celery's own lists
ATTEMPTS = 3  # some tests depend on time: a difference counts when it shows in each run
TEST_SECONDS = 300
REDIS_SECONDS = 60.0
AT_ONCE = 2 * len(PARTS)

Results = dict[str, str]


def fetch(directory: Path) -> None:
    """Unpack the source distribution of the installed Celery, without the package: the installed one is tested."""
    command = [sys.executable, "-m", "pip", "download", "-q", "--disable-pip-version-check", "--no-deps"]
    with tempfile.TemporaryDirectory() as made:
        subprocess.run([*command, "--no-binary", ":all:", "--dest", made, f"celery=={version('celery')}"], check=True)
        (archive,) = Path(made).glob("celery-*.tar.gz")
        with tarfile.open(archive) as file:
            file.extractall(made, filter="data")
        (unpacked,) = (path for path in Path(made).glob("celery-*") if path.is_dir())
        for name in ("celery", "celery.egg-info"):
            shutil.rmtree(unpacked / name)
        shutil.copytree(unpacked, directory, dirs_exist_ok=True)
    lines = [f"-r requirements/{name}\n" for name in REQUIREMENTS]
    (directory / "requirements.txt").write_text("".join(lines))


def compare(directory: Path, parts: Sequence[Sequence[str]]) -> int:
    """Run the tests bare and with the plugin; the exit code."""
    bare, ours = _both(directory, parts)
    print(f"Celery {version('celery')}: bare {_summary(bare)}; with the plugin {_summary(ours)}", flush=True)
    if "passed" not in bare.values() or not _recorded(directory):
        print("celery_suite: no test passed, or nothing was recorded")
        return 1
    differing = _differing(bare, ours)
    for _ in range(ATTEMPTS - 1):
        if not differing:
            break
        print(f"again, for what differed: {', '.join(sorted(differing))}", flush=True)
        bare, ours = _both(directory, _by_file(directory, differing))
        differing &= _differing(bare, ours)
    for name in sorted(differing):
        print(f"differs: {name}: bare {bare.get(name, 'absent')}, with the plugin {ours.get(name, 'absent')}")
    return 1 if differing else 0


def _both(directory: Path, parts: Sequence[Sequence[str]]) -> tuple[Results, Results]:
    """The results bare and with the plugin. Many tests wait for a worker, so all parts run side by side.

    Each part has a process and a copy of the tests of its own: unit tests leave a Celery that cannot work, and write
    files beside them.
    """
    with ThreadPoolExecutor(AT_ONCE) as pool:
        runs = {plugin: [pool.submit(_run, directory, plugin, part) for part in parts] for plugin in ((), PLUGIN)}
        bare, ours = ({name: value for run in runs[key] for name, value in run.result().items()} for key in runs)
        return bare, ours


def _run(directory: Path, plugin: Sequence[str], part: Sequence[str]) -> Results:
    """One run: outcome by test. Tests of one id, such as subtests, have all their outcomes in one."""
    with tempfile.TemporaryDirectory() as made, _redis() as port:
        copy = shutil.copytree(directory, Path(made) / "celery", ignore=shutil.ignore_patterns("registry"))
        report = copy / "report.xml"
        environment = {
            **os.environ,
            "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
            "TEST_BROKER": f"redis://127.0.0.1:{port}/0",
            "TEST_BACKEND": f"redis://127.0.0.1:{port}/1",
            "REDIS_HOST": "127.0.0.1",
            "REDIS_PORT": str(port),
            "JOBMETRICS_DIR": str(directory / "registry"),
        }
        command = [sys.executable, "-m", "pytest", "-q", "--tb=short", "-p", "no:cacheprovider", *plugin]
        options = [f"--timeout={TEST_SECONDS}", f"--junitxml={report}", *part]
        subprocess.run([*command, *options], cwd=copy, env=environment, check=False)
        cases = list(ET.parse(report).iter("testcase")) if report.exists() else []
    found: dict[str, list[str]] = {}
    for case in cases:
        outcome = next((child.tag for child in case if child.tag in {"failure", "error", "skipped"}), "passed")
        found.setdefault(f"{case.get('classname')}::{case.get('name')}", []).append(outcome)
    return {name: "+".join(sorted(set(outcomes))) for name, outcomes in found.items()}


def _differing(bare: Results, ours: Results) -> set[str]:
    return {name for name in bare.keys() | ours.keys() if bare.get(name) != ours.get(name)}


def _by_file(directory: Path, names: Iterable[str]) -> list[list[str]]:
    """The node ids of these tests, those of a file together."""
    files: dict[str, list[str]] = {}
    for name in sorted(names):
        file, node = _node_id(directory, name)
        files.setdefault(file, []).append(node)
    return list(files.values())


def _node_id(directory: Path, name: str) -> tuple[str, str]:
    """The file of a test, and its id. In the name, classes may follow the module."""
    module, test = name.split("::", maxsplit=1)
    parts = module.split(".")
    for end in range(len(parts), 0, -1):
        path = Path(*parts[:end]).with_suffix(".py")
        if (directory / path).is_file():
            return str(path), "::".join([str(path), *parts[end:], test])
    raise SystemExit(f"celery_suite: no file holds {name}")


def _summary(results: Results) -> str:
    outcomes = list(results.values())
    return ", ".join(f"{outcomes.count(outcome)} {outcome}" for outcome in sorted(set(outcomes))) or "nothing"


def _recorded(directory: Path) -> bool:
    """Whether the plugin was on: jobs were counted."""
    command = [sys.executable, "-m", "jobmetrics", "dump", "--dir", str(directory / "registry")]
    shown = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return any(line.startswith(("jobs_total{", "jobs_published_total{")) for line in shown.splitlines())


@contextmanager
def _redis() -> Iterator[int]:
    """The port of a Redis for this run alone."""
    with socket.socket() as free, tempfile.TemporaryDirectory() as made:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
        free.close()
        command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", made]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + REDIS_SECONDS
            while not _answers(port):
                if server.poll() is not None or time.monotonic() > deadline:
                    raise SystemExit("celery_suite: redis-server did not start")
                time.sleep(0.05)
            yield port
        finally:
            server.terminate()
            server.wait()


def _answers(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


def main(arguments: Sequence[str]) -> int:
    if len(arguments) < 2 or arguments[0] not in {"fetch", "compare"}:
        print(__doc__)
        return 2
    directory = Path(arguments[1]).resolve()
    if arguments[0] == "fetch":
        fetch(directory)
        return 0
    return compare(directory, [arguments[2:]] if arguments[2:] else PARTS)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
