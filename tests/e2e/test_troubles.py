"""check and top on real workers in trouble: each trouble appears, and goes away after the mend."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from pathlib import Path

from jobmetrics.exporter import incidents
from tests.e2e.exporters import LIMIT, Exporter, run, running
from tests.integration import celery_workers
from tests.integration.celery_workers import Worker
from tests.support.readings import counts, until, values

# A clock that is ahead makes what runs or waits older; the thresholds stay.
AHEAD = "import time; real = time.time; time.time = lambda: real() + {}; from jobmetrics.cli.main import main; main()"


class Check:
    """`jobmetrics check` without options for brokers: the readings of queues are the exporter's."""

    def __init__(self, worker: Worker, exporter: Exporter) -> None:
        self._options = ["--dir", str(worker.directory), "--listen", "{}:{}".format(*exporter.address)]

    def problems(self, *more: str, ahead: float = 0.0) -> list[str]:
        command = [sys.executable, "-c", AHEAD.format(ahead), "check", *self._options, *more]
        done = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT, check=False)
        found = [line for line in done.stdout.splitlines() if line.startswith("PROBLEM")]
        assert (done.returncode, done.stderr) == (1 if found else 0, ""), done.stdout
        return found

    def names(self, section: str, text: str, ahead: float = 0.0) -> bool:
        return any(text in line and line.endswith(f"(runbook: {section})") for line in self.problems(ahead=ahead))


def test_check_and_top_name_each_trouble_until_it_is_mended(redis_url: str, tmp_path: Path) -> None:
    serving = contextlib.ExitStack()
    long = incidents.STUCK_UNKNOWN + 60.0
    task = celery_workers.TASKS
    with serving:
        with celery_workers.running(redis_url, redis_url, tmp_path, "--concurrency=1") as worker:
            options = ("--celery-broker", redis_url, "--celery-queue", "jobs")
            exporter = serving.enter_context(running(worker.directory, tmp_path / "log", *options))
            check = Check(worker, exporter)
            worker.send("succeed")
            until(lambda: bool(counts(worker.directory, "jobs_duration_seconds")), "the first execution")
            assert check.problems() == []

            worker.send("retry", False)  # fails at the third attempt
            until(lambda: bool(values(worker.directory, "jobs_failures_total")), "the failure")
            assert check.names("JobNoSuccess", f"{task}.retry (celery) was tried 3 times and has never succeeded")
            worker.send("retry", True)
            until(lambda: check.problems() == [], "the failing job type to be mended")

            worker.send("hold_acknowledged")
            until(lambda: not worker.nothing_runs(), "the job that does not end")
            assert check.problems() == []
            stuck = f"an execution of {task}.hold_acknowledged (celery) has been running for 6"
            assert check.names("JobStuck", stuck, ahead=long)
            assert check.names("JobWorkersStuck", "1 of 1 slots of the celery workers", ahead=long)
            worker.release()
            until(lambda: check.problems(ahead=long) == [], "the stuck job to end")

            worker.process.kill()
            worker.process.wait(LIMIT)
            for _ in range(3):
                worker.send("succeed")
            gone = "no celery worker is alive on this host, and 3 jobs wait"
            until(lambda: check.names("JobWorkersGone", gone), "the loss of the worker to be found")
            assert check.names("JobQueueOld", "3 jobs wait in jobs (celery, broker default), the next one for", long)
            for columns in ("80", "140"):
                address = {"JOBMETRICS_LISTEN": "{}:{}".format(*exporter.address), "COLUMNS": columns}
                done = run("top", "--once", "--interval", "0.1", "--dir", str(worker.directory), variables=address)
                assert (done.returncode, done.stderr) == (0, "")
                assert max(map(len, done.stdout.splitlines())) <= int(columns)
                assert f"JobWorkersGone: {gone}" in done.stdout
                (queue,) = [line.split() for line in done.stdout.splitlines() if line.split()[:2] == ["celery", "jobs"]]
                assert queue[:4] == ["celery", "jobs", "default", "3"]
        with celery_workers.running(redis_url, redis_url, tmp_path, "--concurrency=1"):
            until(lambda: check.problems() == [], "the new worker to run what waits")


def test_check_says_that_a_worker_has_just_been_started(tmp_path: Path) -> None:
    """A program with the name of Celery's replaces a worker that does not record yet."""
    program = tmp_path / "celery"
    program.write_text("import sys; sys.stdin.read()")
    options = ("check", "--dir", str(tmp_path / "registry"), "--listen", "127.0.0.1:1")
    assert any("does not exist" in line for line in run(*options).stdout.splitlines() if line.startswith("PROBLEM"))
    with subprocess.Popen(
        [sys.executable, str(program), "-A", "app", "worker"],
        stdin=subprocess.PIPE,
        env={"JOBMETRICS_DIR": str(tmp_path / "registry")},
    ):
        said = run(*options).stdout
    (line,) = [line for line in said.splitlines() if line.startswith("starting")]
    assert line.startswith("starting a celery worker was started ")
    assert "does not exist" not in said


def test_without_an_exporter_check_and_top_say_why_queues_are_missing(registry_dir: Path) -> None:
    variables = {"JOBMETRICS_LISTEN": "127.0.0.1:1", "COLUMNS": "140"}
    reason = "no exporter answers at http://127.0.0.1:1/metrics; give --celery-broker or --rq-url, or --url"
    check = run("check", "--dir", str(registry_dir), variables=variables)
    assert f"note    queues are not checked: {reason}" in check.stdout
    top = run("top", "--once", "--interval", "0.1", "--dir", str(registry_dir), variables=variables)
    assert f"queues are not shown: {reason}" in top.stdout


def test_check_reads_another_hosts_exporter(registry_dir: Path, tmp_path: Path) -> None:
    with running(registry_dir, tmp_path / "log", "--rq-url", "redis://127.0.0.1:1/0") as exporter:
        until(lambda: exporter.scrape()("jobmetrics_collector_up", collector="rq", broker="default") == 0.0, "reading")
        done = run("check", "--url", f"{exporter.url}/metrics", "--watch", "1")
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.splitlines()[1:] == [
        "PROBLEM the exporter cannot read rq broker default; see its log (runbook: JobmetricsCollectorDown)",
        "1 problem",
    ]
