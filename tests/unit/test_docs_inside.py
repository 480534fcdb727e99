"""The samples of docs/inside-the-job.md and the examples of public docstrings run and behave as described."""

from __future__ import annotations

import asyncio
import doctest
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import jobmetrics
from jobmetrics import celery, exporter, rq, testing
from jobmetrics.settings import Settings
from jobmetrics.testing import read_sample, temporary_registry

PAGE = Path(__file__).parents[2] / "docs" / "inside-the-job.md"
SAMPLES = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    with temporary_registry():
        yield


def run(sample: str) -> dict[str, Any]:
    """The namespace of a sample."""
    namespace: dict[str, Any] = {"__name__": "sample"}
    exec(compile(sample, str(PAGE), "exec"), namespace)
    return namespace


def sample_with(text: str) -> str:
    (found,) = [sample for sample in SAMPLES if text in sample]
    return str(found)


def labels(job_type: str, **more: str) -> dict[str, str]:
    return {"system": "python", "job_type": job_type, "queue_name": "", **more}


@pytest.mark.parametrize("sample", SAMPLES, ids=range(len(SAMPLES)))
def test_sample_runs(sample: str) -> None:
    run(sample)


def test_timed_functions_are_recorded() -> None:
    defined = run(sample_with("def clean_up"))
    assert defined["clean_up"]() == "clean"
    assert asyncio.run(defined["report"]()) == "sent"
    assert read_sample("jobs_total", labels("sample.clean_up", status="success")) == 1.0
    assert read_sample("jobs_within_target_total", labels("nightly.report")) == 1.0


def test_stages_items_and_the_current_job() -> None:
    rows, job_type = run(sample_with("def import_orders"))["import_orders"]()
    assert (rows, job_type) == ([["a", "b"], ["c", "d"]], "imports")
    assert read_sample("jobs_items_processed_total", labels("imports")) == 2.0
    for stage in ("download", "parse"):
        assert read_sample("jobs_stage_duration_seconds_count", labels("imports", stage=stage)) == 1.0


def test_thread_with_a_copy_of_the_context() -> None:
    run(sample_with("copy_context"))["count_in_a_thread"]()
    assert read_sample("jobs_items_processed_total", labels("with_thread")) == 5.0


def test_own_metrics() -> None:
    run(sample_with("shop_rows"))
    assert read_sample("shop_rows_total", {"table": "orders"}) == 3.0
    assert read_sample("shop_upload_bytes_bucket", {"le": "1e6"}) == 1.0


def test_metrics_without_a_definition() -> None:
    run(sample_with("shop_checkout"))
    assert read_sample("shop_orders_total", {"region": "eu"}) == 1.0
    assert read_sample("shop_revenue_euros_total") == 12.5
    assert read_sample("shop_stock", {"item": "chair"}) == 7.0
    assert read_sample("shop_basket_items_count") == 1.0
    assert read_sample("shop_checkout_seconds_count", {"region": "eu"}) == 1.0


@pytest.mark.parametrize(("sample", "passed"), [("def test_emails_are_counted", 2), ("def test_lines_are_counted", 1)])
def test_pytest_examples_pass_unchanged(sample: str, passed: int, tmp_path: Path) -> None:
    (tmp_path / "test_sample.py").write_text(sample_with(sample))
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", str(tmp_path)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert f"{passed} passed" in done.stdout, done.stdout + done.stderr


def test_limits_are_those_of_the_settings() -> None:
    defaults = Settings()
    for name in ("max_name_length", "max_label_name_length", "max_labels", "max_label_value_length"):
        (row,) = [line for line in PAGE.read_text().splitlines() if f"`{name}`" in line]
        assert str(getattr(defaults, name)) in row


# Without an example: the docstring of an error is its message; the records of `record_jobs` are in its example.
# RQ's classes with metrics have RQ's parameters.
WITHOUT_EXAMPLE = {"JobmetricsError", "JobRecord", "RecordedJobs", "Worker", "SimpleWorker", "SpawnWorker"}
MODULES = (jobmetrics, testing, exporter, celery, rq)
PUBLIC = [(module, name) for module in MODULES for name in module.__all__ if name not in WITHOUT_EXAMPLE]


@pytest.mark.parametrize(("module", "name"), PUBLIC, ids=[f"{module.__name__}.{name}" for module, name in PUBLIC])
def test_docstring_has_an_example_that_runs(module: ModuleType, name: str) -> None:
    (found,) = doctest.DocTestFinder(recurse=False).find(getattr(module, name), name, module=False, globs={})
    assert found.examples
    report: list[str] = []
    try:
        assert doctest.DocTestRunner().run(found, out=report.append).failed == 0, "".join(report)
    finally:
        celery.uninstrument()  # its signals are those of the process


@pytest.mark.parametrize(("module", "name"), PUBLIC, ids=[f"{module.__name__}.{name}" for module, name in PUBLIC])
def test_docstring_describes_each_parameter(module: ModuleType, name: str) -> None:
    documented = inspect.getdoc(getattr(module, name)) or ""
    if name != "CurrentJob":  # a result, not called by users
        for parameter in inspect.signature(getattr(module, name)).parameters:
            assert re.search(rf"^    {parameter}: [A-Z]", documented, re.MULTILINE), parameter
