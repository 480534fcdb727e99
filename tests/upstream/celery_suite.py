"""Celery's own tests on the installed Celery, bare and with the plugin: t/unit, and t/integration on prefork and Redis.

    python tests/upstream/celery_suite.py fetch DIRECTORY      # then install DIRECTORY/requirements.txt
    python tests/upstream/celery_suite.py compare DIRECTORY [tests such as t/unit/worker]

The tests come from the source distribution of the installed version, by pip, and are not kept. `compare` starts its own
Redis. Exit code 1 when a test's result is worse with the plugin in each of a few runs, or when nothing was recorded.
Other differences are printed.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

# Programs and a pytest plugin, found by their folder: where RQ's tests run, `tests` is another package.
if TYPE_CHECKING:
    from tests.upstream.outcomes import Results, compare, read_report, redis_on, source_of
else:
    from outcomes import Results, compare, read_report, redis_on, source_of

PLUGIN = ("-p", "jobmetrics.celery.plugin")  # importing it turns recording on, as `imports` does in a worker
# Parts of about the same duration.
CANVAS = "t/integration/test_canvas.py"
CANVAS_CLASSES = (f"{CANVAS}::test_chord", f"{CANVAS}::test_chain")
UNIT_FOLDERS = ("t/unit/tasks", "t/unit/worker")
PARTS = (
    UNIT_FOLDERS,
    ("t/unit", *(f"--ignore={each}" for each in UNIT_FOLDERS)),
    *((each,) for each in CANVAS_CLASSES),
    (CANVAS, *(f"--deselect={each}" for each in CANVAS_CLASSES)),
    ("t/integration", f"--ignore={CANVAS}"),
)
REQUIREMENTS = ("test.txt", "test-ci-base.txt", "extras/redis.txt", "extras/django.txt")  # Celery's own lists
TEST_SECONDS = 300
AT_ONCE = 2 * len(PARTS)


def fetch(directory: Path) -> None:
    """Unpack the source distribution of the installed Celery without the package: the installed one is tested."""
    with source_of("celery") as unpacked:
        for name in ("celery", "celery.egg-info"):
            shutil.rmtree(unpacked / name)
        shutil.copytree(unpacked, directory, dirs_exist_ok=True)
    lines = [f"-r requirements/{name}\n" for name in REQUIREMENTS]
    (directory / "requirements.txt").write_text("".join(lines))


def _both(directory: Path, parts: Sequence[Sequence[str]]) -> tuple[Results, Results]:
    """The results bare and with the plugin. Many tests wait for a worker, so all parts run in parallel.

    Each part has a process and a copy of the tests: unit tests leave a Celery that cannot work, and write
    files beside them.
    """
    with ThreadPoolExecutor(AT_ONCE) as pool:
        runs = {plugin: [pool.submit(_run, directory, plugin, part) for part in parts] for plugin in ((), PLUGIN)}
        for part, run in zip(parts, runs[()], strict=True):
            if not run.result():
                raise SystemExit(f"celery_suite: no test ran of {' '.join(part)}")
        bare, ours = ({name: value for run in runs[key] for name, value in run.result().items()} for key in runs)
        return bare, ours


def _run(directory: Path, plugin: Sequence[str], part: Sequence[str]) -> Results:
    """Run once; return outcomes by test."""
    port = _free_port()
    # Beside the directory: nox's temporary directory is the one that is copied.
    with tempfile.TemporaryDirectory(dir=directory.parent) as made, redis_on(port):
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
        # Other traceback styles parse source beside the worker's threads, which ends pytest on Python 3.11 at times.
        command = [sys.executable, "-m", "pytest", "-q", "--tb=native", "-p", "no:cacheprovider", *plugin]
        options = [f"--timeout={TEST_SECONDS}", f"--junitxml={report}", *part]
        subprocess.run([*command, *options], cwd=copy, env=environment, check=False)
        return read_report(report)


def _by_file(directory: Path, names: Iterable[str]) -> list[list[str]]:
    """The node ids of these tests, grouped by file."""
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
    raise SystemExit(f"celery_suite: no file contains {name}")


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def main(arguments: Sequence[str]) -> int:
    if len(arguments) < 2 or arguments[0] not in {"fetch", "compare"}:
        print(__doc__)
        return 2
    directory = Path(arguments[1]).resolve()
    if arguments[0] == "fetch":
        fetch(directory)
        return 0
    return compare(
        "celery",
        lambda: _both(directory, [arguments[2:]] if arguments[2:] else PARTS),
        lambda names: _both(directory, _by_file(directory, names)),
        directory / "registry",
    )


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
