from __future__ import annotations

import itertools
import math
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from jobmetrics import Counter, Gauge, Histogram, add_items, recorder, settings, stage, timed_job
from jobmetrics.errors import InstrumentError
from jobmetrics.events import Job, Published, Withdrawn
from jobmetrics.families import HISTOGRAM, JOB_LABELS
from jobmetrics.testing import CountingClock, read_sample, record_jobs, temporary_registry
from tests.multiprocess.support import in_child
from tests.support import readings

GAUGE_MODES = ("livesum", "sum", "max", "min", "mostrecent")
ROWS = Counter("rows", "Rows.", ["table"])
ROWS_OF_ORDERS = ROWS.labels("orders")


@timed_job(name="imports", target=2.0)
def imports(clock: CountingClock) -> None:
    with stage("download"):
        clock.advance(1.5)
    add_items(3)


@timed_job(name="fails")
def fails() -> None:
    raise KeyError


# ------------------------------------------------------------------ clock


def test_clock_stands_still_until_it_is_advanced() -> None:
    clock = CountingClock(10.0)
    assert (clock(), clock()) == (10.0, 10.0)
    clock.advance(2.5)
    assert (clock(), clock.readings) == (12.5, 3)


def test_clock_may_step_at_each_reading() -> None:
    clock = CountingClock(step=0.5)
    assert [clock(), clock(), clock()] == [0.0, 0.5, 1.0]


# ------------------------------------------------------------------ registry


def test_each_block_has_its_own_registry() -> None:
    with temporary_registry() as one:
        ROWS_OF_ORDERS.inc()
        assert read_sample("rows_total", {"table": "orders"}) == 1.0
        assert settings.active().dir == one
    assert not Path(one).exists()
    with temporary_registry() as other:
        assert read_sample("rows_total", {"table": "orders"}) is None
        ROWS_OF_ORDERS.inc(2)  # made before both registries
        ROWS.labels("orders").inc(3)
        assert read_sample("rows_total", {"table": "orders"}) == 5.0
    assert one != other


def test_registry_gives_back_what_was_active(registry_dir: Path) -> None:
    before = settings.configure(dir=registry_dir)
    with temporary_registry(max_series=100):
        assert settings.active().max_series == 100
    assert settings.peek() is before
    ROWS_OF_ORDERS.inc()
    assert read_sample("rows_total", {"table": "orders"}, directory=str(registry_dir)) == 1.0


def test_the_registry_raises_on_misuse() -> None:
    with temporary_registry(), pytest.raises(InstrumentError):
        ROWS.labels("a", "b")


def test_registry_measures_by_the_clock_it_is_given() -> None:
    clock = CountingClock()
    labels = {"system": "python", "job_type": "imports", "queue_name": ""}
    with temporary_registry(clock):
        imports(clock)
        assert read_sample("jobs_duration_seconds_sum", labels) == 1.5
        assert read_sample("jobs_total", {**labels, "status": "success"}) == 1.0
        assert read_sample("jobs_stage_duration_seconds_bucket", {**labels, "stage": "download", "le": "2.5"}) == 1.0


# ------------------------------------------------------------------ samples


def test_a_missing_sample_is_none() -> None:
    with temporary_registry():
        assert read_sample("rows_total") is None
        ROWS_OF_ORDERS.inc()
        assert read_sample("rows_total") is None
        assert read_sample("rows") is None
        assert read_sample("rows_total", {"table": "invoices"}) is None


def test_samples_of_a_histogram_match_the_exposition() -> None:
    with temporary_registry():
        size = Histogram("size", "Size.", ["table"], buckets=(1, 2.5))
        for amount in (0.5, 2, 7):
            size.labels("a").observe(amount)
        labels = {"table": "a"}
        found = {le: read_sample("size_bucket", {**labels, "le": le}) for le in ("1", "1.0", "2.5", "+Inf", "3")}
        assert found == {"1": 1.0, "1.0": 1.0, "2.5": 2.0, "+Inf": 3.0, "3": None}
        assert (read_sample("size_count", labels), read_sample("size_sum", labels)) == (3.0, 9.5)
        assert read_sample("size", labels) is None


def test_running_jobs_are_read_too() -> None:
    labels = {"system": "python", "job_type": "imports", "queue_name": ""}
    seen: list[float | None] = []

    @timed_job(name="imports")
    def run() -> None:
        seen.append(read_sample("jobs_active", labels))
        seen.append(read_sample("jobs_active_oldest_timestamp_seconds", labels))

    with temporary_registry():
        Gauge("level", "Level.").set(0)
        run()
        assert read_sample("level") == 0.0
        assert read_sample("jobs_active", labels) == 0.0
    assert seen[0] == 1.0
    assert seen[1] is not None


def everything(path: str) -> Iterator[tuple[str, dict[str, str], float | None]]:
    """Each sample as the exporter's reader has it: name, labels and value."""
    found = readings.snapshot(Path(path))
    for family, samples in found.families:
        for sample in samples:
            labels = dict(zip(family.labels, sample.values, strict=True))
            if family.type != HISTOGRAM:
                yield family.name, labels, sample.value
                continue
            yield f"{family.name}_sum", labels, sample.sum
            for n, bound in enumerate((*family.buckets, math.inf), start=1):
                yield f"{family.name}_bucket", {**labels, "le": str(bound)}, sum(sample.buckets[:n])
    for active in found.active:
        labels = dict(zip(JOB_LABELS, active.values, strict=True))
        yield "jobs_active", labels, float(active.count)
        yield "jobs_active_oldest_timestamp_seconds", labels, active.oldest


def test_samples_match_those_of_the_exporter() -> None:
    """Every type and mode, from two processes, with series that were removed, reset and recorded again."""
    gauges = {mode: Gauge(f"level_{mode}", "Level.", ["side"], multiprocess_mode=mode) for mode in GAUGE_MODES}
    size = Histogram("read_size", "Size.", ["table"], buckets=(1, 2.5))

    def record(share: float) -> None:
        ROWS_OF_ORDERS.inc(share)
        ROWS.labels("invoices").inc(2 * share)
        for side, gauge in itertools.product(("left", "right"), gauges.values()):
            gauge.labels(side).set(share if side == "left" else -share)
        for amount in (0.5 * share, share, 4 * share):
            size.labels("a").observe(amount)
        imports(CountingClock())

    def run_and_look() -> None:
        @timed_job(name="looks")
        def looks() -> None:
            found = list(everything(path))
            assert len(found) > 40
            assert ("jobs_active", {"system": "python", "job_type": "looks", "queue_name": ""}, 1.0) in found
            for name, labels, value in found:
                assert read_sample(name, labels) == value, (name, labels)

        looks()

    with temporary_registry() as path:
        record(1.0)
        in_child(partial(record, 3.0))
        run_and_look()
        ROWS.remove("invoices")
        ROWS_OF_ORDERS.reset()
        size.remove("a")
        ROWS.labels("own").inc()
        ROWS.remove("own")
        assert read_sample("rows_total", {"table": "own"}) is None
        assert read_sample("rows_total", {"table": "invoices"}) == 6.0, "of the other process"
        run_and_look()
        record(2.0)
        run_and_look()


WITHOUT_EXTRAS = """
import sys
for name in "bcrypt celery click numpy prometheus_client psutil redis rich rq uvicorn yaml".split():
    sys.modules[name] = None
from jobmetrics import Counter
from jobmetrics.testing import read_sample, temporary_registry
with temporary_registry():
    Counter("rows", "Rows.").inc(3)
    assert read_sample("rows_total") == 3.0
"""


def test_no_extra_is_needed() -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_EXTRAS], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


WITH_THE_FIXTURE = """
from jobmetrics import Counter
from jobmetrics.testing import read_sample

ROWS = Counter("rows", "Rows.")

def test_rows(jobmetrics_registry):
    ROWS.inc(3)
    assert read_sample("rows_total") == 3.0

def test_other_rows(jobmetrics_registry):
    assert read_sample("rows_total", directory=jobmetrics_registry) is None
    ROWS.inc(1)
    assert read_sample("rows_total") == 1.0
"""


def test_the_package_brings_a_fixture(tmp_path: Path) -> None:
    (tmp_path / "test_rows.py").write_text(WITH_THE_FIXTURE)
    (tmp_path / "pytest.ini").write_text("[pytest]\n")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "2 passed" in done.stdout, done.stdout + done.stderr


# ------------------------------------------------------------------ record_jobs


def test_jobs_are_kept_in_memory() -> None:
    clock = CountingClock(100.0)
    with record_jobs(clock) as recorded:
        imports(clock)
        with pytest.raises(KeyError):
            fails()
    one, other = recorded.executions
    assert (one.job, one.status, one.duration) == (Job("python", "imports", ""), "success", 1.5)
    assert (one.target, one.items, one.stages) == (2.0, 3.0, [("download", 1.5)])
    assert (other.job.job_type, other.status, type(other.error)) == ("fails", "failure", KeyError)


def test_events_are_kept_in_memory() -> None:
    job = Job("celery", "app.resize", "images")
    with record_jobs() as recorded:
        recorder.default().published(Published(job))
        recorder.default().withdrawn(Withdrawn(job, "expired"))
    assert recorded.events == [Published(job), Withdrawn(job, "expired")]


def test_nothing_is_written_while_jobs_are_kept_in_memory(registry_dir: Path) -> None:
    settings.configure(dir=registry_dir)
    with record_jobs() as recorded:
        imports(CountingClock())
    assert list(registry_dir.iterdir()) == []
    imports(CountingClock())
    assert len(recorded.executions) == 1
    assert read_sample("jobs_items_processed_total", {"system": "python", "job_type": "imports", "queue_name": ""}) == 3
