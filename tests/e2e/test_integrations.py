"""The job system of docs/integrations.md: built as a package, installed outside this repository, and used."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from jobmetrics.families import OVERFLOW
from tests.e2e.exporters import running
from tests.support.readings import counts, until, values
from tests.unit.documents import DOCS, blocks

FILE = re.compile(r"# ([\w./]+\.(?:py|toml))\n")
LIMIT = 60  # seconds; limit for a hung test

WORK = """
import collections, sys, spool
from spool_metrics.worker import count_sent, instrument
instrument()
instrument()
folder, *names = sys.argv[1:]
for name in names:
    spool.send(folder, name)
    if name != "unseen":
        count_sent("mails", name)
spool.work(folder, collections.defaultdict(lambda: lambda: None))
"""

ITEMS = """
import sys, jobmetrics, spool
from spool_metrics.worker import instrument
instrument()
spool.send(sys.argv[1], "resize")
spool.work(sys.argv[1], {"resize": lambda: jobmetrics.add_items(3)})
"""

FILL = """
import sys
from jobmetrics import timed_job
for number in range(int(sys.argv[1])):
    timed_job(name=f"plain{number}")(lambda: None)()
"""

WORKER_SIDE = """
import sys
before = set(sys.modules)
import spool_metrics.worker
loaded = set(sys.modules) - before
print(sorted({name.partition(".")[0] for name in loaded} & {"click", "numpy", "prometheus_client", "celery", "rq"}))
print(sorted({"importlib.metadata", "jobmetrics.collector_api", "jobmetrics.exporter"} & loaded))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder for PYTHONPATH in which the package is installed, with its metadata."""
    project, site = tmp_path_factory.mktemp("spool"), tmp_path_factory.mktemp("site")
    (project / "spool_metrics").mkdir()
    (project / "spool_metrics" / "__init__.py").touch()
    for block in blocks(DOCS / "integrations.md"):
        found = FILE.match(block.text)
        assert found, f"{block} has no file name"
        place = site if found[1] in {"spool.py", "test_spool_metrics.py"} else project
        (place / found[1]).write_text(block.text)
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel"], cwd=project, check=True, timeout=LIMIT)
    (wheel,) = (project / "dist").iterdir()
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    assert "jobmetrics.systems" in (site / "spool_metrics-1.0.dist-info" / "entry_points.txt").read_text()
    return site


class Place:
    """A folder of jobs, a registry directory, and processes that see the installed package."""

    def __init__(self, installed: Path, registry_dir: Path, tmp_path: Path) -> None:
        path = filter(None, (str(installed), os.environ.get("PYTHONPATH")))
        self.environment = {"PYTHONPATH": os.pathsep.join(path), "JOBMETRICS_DIR": str(registry_dir)}
        self.folder = tmp_path / "mails"
        self.folder.mkdir()
        self.directory = registry_dir

    def python(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments],
            env={**os.environ, **self.environment, **environment},
            capture_output=True, text=True, check=False, timeout=LIMIT, cwd=self.folder,
        )  # fmt: skip

    def work(self, *names: str, **environment: str) -> None:
        done = self.python("-c", WORK, str(self.folder), *names, JOBMETRICS_PROPAGATE_ERRORS="true", **environment)
        assert done.returncode == 0, done.stderr


@pytest.fixture
def place(installed: Path, registry_dir: Path, tmp_path: Path) -> Place:
    return Place(installed, registry_dir, tmp_path)


def test_executions_are_recorded_with_the_name_of_the_system(place: Place) -> None:
    place.work("resize", "resize", "mail")
    assert values(place.directory, "jobs_total") == {
        ("spool", "resize", "mails", "success"): 2,
        ("spool", "mail", "mails", "success"): 1,
    }
    assert sum(counts(place.directory, "jobs_queue_wait_seconds").values()) == 3
    assert values(place.directory, "jobs_published_total") == {
        ("spool", "resize", "mails"): 2,
        ("spool", "mail", "mails"): 1,
    }


@pytest.mark.parametrize("others", [0, 200], ids=["alone", "in a full directory"])
def test_the_name_is_kept_beyond_the_cap(others: int, place: Place) -> None:
    cap = {"JOBMETRICS_MAX_SERIES": "150"}
    assert place.python("-c", FILL, str(others), **cap).returncode == 0
    names = [f"job{number}" for number in range(60)]
    place.work(*names, **cap)
    found = {labels: count for labels, count in values(place.directory, "jobs_total").items() if labels[0] != "python"}
    assert {system for system, *_ in found} == {"spool"}
    assert sum(found.values()) == 60
    assert found["spool", OVERFLOW, OVERFLOW, "success"] > 0


def test_the_package_imports_the_interface_of_job_systems_and_nothing_else(installed: Path) -> None:
    imported = set()
    for module in (installed / "spool_metrics").glob("*.py"):
        imported.update(re.findall(r"^(?:from|import) (jobmetrics[.\w]*)", module.read_text(), re.MULTILINE))
    assert imported == {f"jobmetrics.{name}" for name in ("collector_api", "errors", "families", "integration")}


def test_a_job_is_the_running_one(place: Place) -> None:
    done = place.python("-c", ITEMS, str(place.folder), JOBMETRICS_PROPAGATE_ERRORS="true")
    assert done.returncode == 0, done.stderr
    assert values(place.directory, "jobs_items_processed_total") == {("spool", "resize", "mails"): 3}


def test_the_truth_table_passes_as_the_page_shows(installed: Path, place: Place) -> None:
    done = place.python("-m", "pytest", "-q", "-p", "no:cacheprovider", str(installed / "test_spool_metrics.py"))
    assert (done.returncode, done.stdout.splitlines()[-1].partition(" in ")[0]) == (0, "4 passed"), done.stdout


@pytest.mark.parametrize("command", ["exporter", "dump", "top", "check"])
def test_the_option_is_in_the_help(command: str, place: Place) -> None:
    text = place.python("-m", "jobmetrics", command, "--help").stdout
    assert "--spool-folder DIR" in text
    assert "JOBMETRICS_EXPORTER_SPOOL_FOLDER" in text
    before, spool, after = (text.index(option) for option in ("--rq-queue", "--spool-folder", "--timeout"))
    assert before < spool < after


def test_readings_of_the_collector_are_scraped(place: Place, tmp_path: Path) -> None:
    for number in range(2):
        (place.folder / f"{number}.job").write_text("resize")
    with running(
        place.directory, tmp_path / "log", "--spool-folder", str(place.folder), **place.environment
    ) as exporter:

        def depth() -> float | None:
            return exporter.scrape()("jobs_queue_depth", system="spool", broker="mails", queue_name="mails")

        until(lambda: depth() == 2, "the depth")
        assert exporter.scrape()("jobmetrics_collector_up", collector="spool", broker="mails") == 1
        assert exporter.stop()[0] == 0


def test_the_option_may_be_set_in_the_environment_and_in_the_file(place: Place, tmp_path: Path) -> None:
    place.work("resize")
    file = tmp_path / "jobmetrics.toml"
    file.write_text(f"[exporter]\nspool_folder = '{place.folder}'\n")
    line = re.compile(r'^jobs_queue_depth\{.*system="spool".*\} 0', re.MULTILINE)
    for variables in ({"JOBMETRICS_CONFIG": str(file)}, {"JOBMETRICS_EXPORTER_SPOOL_FOLDER": str(place.folder)}):
        dump = place.python("-m", "jobmetrics", "dump", **variables)
        assert line.search(dump.stdout), dump.stderr
        assert "is not a setting" not in dump.stderr
    assert "jobs_queue_depth" not in place.python("-m", "jobmetrics", "dump").stdout, "without the option it is absent"


def test_check_prints_the_findings_and_the_version_of_the_system(place: Place) -> None:
    place.work("unseen", "resize")
    done = place.python("-m", "jobmetrics", "check", "--listen", "127.0.0.1:1")
    assert (
        "note    unseen is not counted where it is sent; call spool_metrics.worker.count_sent"
        in done.stdout.splitlines()
    )
    assert "resize is not counted" not in done.stdout
    assert "spool-metrics 1.0" in done.stdout


def test_a_package_that_cannot_be_loaded_is_skipped_alone(place: Place) -> None:
    place.work("resize")
    broken = place.folder / "broken-1.0.dist-info"
    broken.mkdir()
    (broken / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (broken / "entry_points.txt").write_text("[jobmetrics.systems]\nbroken = no_such_module:SYSTEM\n")
    path = {"PYTHONPATH": os.pathsep.join((place.environment["PYTHONPATH"], str(place.folder)))}
    done = place.python("-m", "jobmetrics", "check", "--listen", "127.0.0.1:1", **path)
    assert "PROBLEM job system broken cannot be loaded: No module named 'no_such_module'" in done.stdout
    dump = place.python("-m", "jobmetrics", "dump", "--spool-folder", str(place.folder), **path)
    assert 'job_type="resize"' in dump.stdout
    assert "job system broken cannot be loaded" in dump.stderr


def test_workers_load_no_modules_of_commands(place: Place) -> None:
    assert place.python("-c", WORKER_SIDE).stdout.splitlines() == ["[]", "[]"]
