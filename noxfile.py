"""nox sessions: tests of each job system with its supported versions, and other tests with each supported Python.

Each session has a separate environment. `pipx run nox` runs all sessions; `pipx run nox -s "rq(version='1.16')"` runs
one.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import nox

nox.options.reuse_venv = "yes"  # pip installs what has changed

PYPROJECT = nox.project.load_toml("pyproject.toml")
TOOLS = nox.project.dependency_groups(PYPROJECT, "lane")

# Two tests run at a time, because most tests wait for workers.
PYTEST = ("python", "-m", "pytest", "-n", "2", "-m", "not (long or serial)")


def each(system: str, versions: tuple[str, ...]) -> Any:
    """Make a session for each version. make test-all runs the oldest, by its tag; the newest version is in .venv."""
    oldest, *others = versions
    return nox.parametrize("version", [nox.param(oldest, tags=[f"{system}-oldest"]), *others])


@nox.session(python=nox.project.python_versions(PYPROJECT))
def pythons(session: nox.Session) -> None:
    """Tests without a job system, with each Python of the classifiers; those that are not installed are skipped."""
    tools = nox.project.dependency_groups(PYPROJECT, "dev")
    session.install("-c", "constraints.txt", "-e", ".[all]", *tools)
    session.run(*PYTEST, "tests/unit", "tests/multiprocess", *session.posargs)


@nox.session(tags=["wheel"])
def wheel(session: nox.Session) -> None:
    """The built wheel, outside the checkout: its commands, the demo, and the conformance test of a job system."""
    built = Path(session.virtualenv.location).resolve() / "built"
    shutil.rmtree(built, ignore_errors=True)
    session.install("-c", "constraints.txt", "hatchling")
    session.run("python", "-m", "hatchling", "build", "-t", "wheel", "-d", str(built))
    (package,) = built.glob("*.whl")
    tools = nox.project.dependency_groups(PYPROJECT, "test", "docs")
    session.install("-c", "constraints.txt", f"{package}[all]", *tools)
    session.install("--force-reinstall", "--no-deps", str(package))  # an earlier build may have the same version
    for name in ("demo", "tests", "docs", "examples", "tools", "pyproject.toml"):
        copy = shutil.copytree if Path(name).is_dir() else shutil.copy
        copy(name, built / name)
    session.chdir(built)
    session.run("jobmetrics", "--version")
    session.run("jobmetrics", "rules", "--namespace", "acme", silent=True)
    session.run("jobmetrics", "dashboards", "--output", str(built / "dashboards"), silent=True)
    session.run("python", "-m", "demo", env={"DEMO_SECONDS": "5"}, silent=True)
    session.run(*PYTEST, "tests/e2e/test_integrations.py", "tests/unit/test_testing.py", *session.posargs)


RQ_VERSIONS = ("1.16", "2.0", "2.6", "2.12", "3.0")
RQ_TESTS = (
    "tests/unit/rq",
    "tests/integration/test_queues_rq.py",
    "tests/integration/test_rq_classes.py",
    "tests/integration/test_rq_spawn.py",
    "tests/integration/test_rq_truth.py",
)


@nox.session
@each("rq", RQ_VERSIONS)
def rq(session: nox.Session, version: str) -> None:
    """Tests with RQ: the oldest and the newest supported version, and versions that changed its workers."""
    session.install("-e", ".[rq,exporter]", f"rq=={version}.*", "fakeredis", *TOOLS)
    # Old releases use functions that are deprecated now.
    session.run(*PYTEST, "-W", "ignore::DeprecationWarning", *RQ_TESTS, *session.posargs)


@nox.session
@each("rq-suite", RQ_VERSIONS)
def upstream_rq(session: nox.Session, version: str) -> None:
    """RQ's test suite, without jobmetrics and with its worker classes: the results must be equal."""
    session.install("-e", ".[rq,exporter]", f"rq=={version}.*", *TOOLS)
    session.run("python", "tests/upstream/rq_suite.py", *session.posargs)


CELERY_VERSIONS = ("5.3", "5.5", "5.6", "5.7")
CELERY_TESTS = (
    "tests/unit/celery",
    "tests/integration/test_celery_prefork.py",
    "tests/integration/test_celery_threads.py",
    "tests/integration/test_celery_solo.py",
    "tests/integration/test_celery_gevent.py",
    "tests/integration/test_celery_spawn.py",
    "tests/integration/test_celery_rabbitmq.py",
    "tests/integration/test_celery_redeliveries.py",
    "tests/integration/test_celery_lifecycle.py",
    "tests/integration/test_celery_beat.py",
    "tests/integration/test_queues_celery.py",
)


@nox.session
@each("celery", CELERY_VERSIONS)
def celery(session: nox.Session, version: str) -> None:
    """Tests with Celery: the supported versions, which report the ends of tasks in different ways."""
    # The newest kombu needs a newer redis-py than the extra of Celery 5.3 allows.
    of_its_time = ("kombu==5.3.*",) if version == "5.3" else ()
    session.install("-e", ".[celery,exporter]", f"celery=={version}.*", *of_its_time, "gevent", "fakeredis", *TOOLS)
    session.run(*PYTEST, "-W", "ignore::DeprecationWarning", *CELERY_TESTS, *session.posargs)


@nox.session(tags=["celery-suite"])
def upstream_celery(session: nox.Session) -> None:
    """Celery's test suite, without and with the plugin, for its newest version. Arguments select tests."""
    session.install("-e", ".[celery,exporter]", f"celery=={CELERY_VERSIONS[-1]}.*")
    suite = session.create_tmp()
    session.run("python", "tests/upstream/celery_suite.py", "fetch", suite)
    session.install("-r", f"{suite}/requirements.txt")
    session.run("python", "tests/upstream/celery_suite.py", "compare", suite, *session.posargs)
