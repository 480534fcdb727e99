"""check, top and prune as real processes on real directories."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import subprocess
import time
from pathlib import Path

import psutil
import pytest

from jobmetrics import settings
from jobmetrics.exporter import diagnosis
from jobmetrics.families import JOBS_DURATION
from jobmetrics.findings import NOTE
from jobmetrics.instruments import BoundHistogram
from jobmetrics.registry.write.writer import Writer
from tests.e2e.exporters import COMMAND, LIMIT, complaint, recording, run, running
from tests.multiprocess.places import ALICE, need_root
from tests.multiprocess.support import record
from tests.support.readings import until, values


def columns(text: str) -> int:
    return max(map(len, text.splitlines()))


# ------------------------------------------------------------------ prune


def test_prune_removes_everything_once_the_workers_have_stopped(registry_dir: Path) -> None:
    with recording(registry_dir):
        pass
    (registry_dir / "slot-00000.set-aside").write_bytes(b"damaged once")
    (registry_dir / "another-programs-file").touch()
    done = run("prune", "--dir", str(registry_dir), "--yes")
    assert (done.returncode, done.stdout) == (0, f"3 files removed from {registry_dir}\n")
    assert [path.name for path in registry_dir.iterdir()] == ["another-programs-file"]
    with recording(registry_dir):
        assert sum(values(registry_dir, "jobs_total").values()) == 2


def test_prune_removes_nothing_while_a_worker_lives(registry_dir: Path) -> None:
    with recording(registry_dir) as worker:
        before = sorted(path.name for path in registry_dir.iterdir())
        done = run("prune", "--dir", str(registry_dir), "--yes")
        assert done.returncode == 1
        assert done.stderr.startswith("jobmetrics: nothing was removed: slot-00000 is held by a living process")
        assert len(done.stderr.splitlines()) == 1
        assert sorted(path.name for path in registry_dir.iterdir()) == before
        assert sum(values(registry_dir, "jobs_total").values()) == 2
        worker.kill()
        worker.wait()
        assert run("prune", "--dir", str(registry_dir), "--yes").returncode == 0
        assert list(registry_dir.iterdir()) == []


def test_a_running_exporter_follows_the_new_generation(registry_dir: Path, tmp_path: Path) -> None:
    with running(registry_dir, tmp_path / "log") as exporter:
        with recording(registry_dir):
            assert "jobs_total" in exporter.scrape().names()
        assert run("prune", "--dir", str(registry_dir), "--yes").returncode == 0
        assert "jobs_total" not in exporter.scrape().names()
        with recording(registry_dir):
            assert "jobs_total" in exporter.scrape().names()


def test_prune_asks_and_refuses_without_a_terminal(registry_dir: Path) -> None:
    with recording(registry_dir):
        pass
    assert "add --yes" in complaint(run("prune", "--dir", str(registry_dir), variables={}))
    assert (registry_dir / "index").exists()


def test_prune_of_a_missing_or_unsafe_directory_is_one_clear_line(registry_dir: Path, tmp_path: Path) -> None:
    assert "does not exist" in complaint(run("prune", "--dir", str(tmp_path / "none"), "--yes"), 1)
    (tmp_path / "link").symlink_to(registry_dir)
    assert "symbolic link" in complaint(run("prune", "--dir", str(tmp_path / "link"), "--yes"), 1)


# ------------------------------------------------------------------ check


def test_check_of_a_good_set_up_finds_nothing(registry_dir: Path, tmp_path: Path, redis_url: str) -> None:
    with running(registry_dir, tmp_path / "log") as exporter, recording(registry_dir, started=time.time()):
        address = "{}:{}".format(*exporter.address)
        done = run("check", "--dir", str(registry_dir), "--listen", address, "--rq-url", redis_url)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("nothing is wrong\n")
    for said in (f"{registry_dir}, mode 700", "1 live slots", "rq broker default answers", "reads this directory"):
        assert said in done.stdout
    assert "PROBLEM" not in done.stdout


def test_check_names_each_problem_with_its_remedy_and_no_secret(registry_dir: Path, tmp_path: Path) -> None:
    with recording(registry_dir):
        pass
    with running(tmp_path / "another", tmp_path / "log") as exporter:
        done = run(
            "check", "--dir", str(registry_dir), "--listen", "{}:{}".format(*exporter.address),
            "--rq-url", "redis://:hidden-word@127.0.0.1:1/0",
        )  # fmt: skip
    assert (done.returncode, done.stderr) == (1, "")
    problems = [line for line in done.stdout.splitlines() if line.startswith("PROBLEM")]
    assert len(problems) == 3
    assert "no living process records here; start a worker" in problems[0]
    assert "redis://***@127.0.0.1:1/0 cannot be read" in problems[1]
    assert f"does not read {registry_dir}; give both the same JOBMETRICS_DIR" in problems[2]
    assert "hidden-word" not in done.stdout


@pytest.mark.parametrize(
    ("mode", "said"), [(0o777, "may be written by anyone"), (0o000, "cannot be read"), (None, "does not exist")]
)
def test_check_of_a_directory_that_cannot_be_used(mode: int | None, said: str, registry_dir: Path) -> None:
    if mode is None:
        registry_dir.rmdir()
    else:
        registry_dir.chmod(mode)
    try:
        done = run("check", "--dir", str(registry_dir), "--listen", "127.0.0.1:1", limited=True)
    finally:
        if mode is not None:
            registry_dir.chmod(0o700)
    assert (done.returncode, done.stderr) == (1, "")
    assert any(line.startswith("PROBLEM") and said in line for line in done.stdout.splitlines())


def test_another_users_directory_is_refused_until_the_setting_allows_it(registry_dir: Path) -> None:
    """Another local user may have made the default directory first; --dir does not permit it either."""
    need_root()
    with recording(registry_dir):
        pass
    for path in (registry_dir, *registry_dir.iterdir()):
        os.chown(path, ALICE, ALICE)
    options = ("--dir", str(registry_dir))
    said = f"{registry_dir} belongs to user {ALICE}, this process is user 0"
    done = run("check", *options, "--listen", "127.0.0.1:1")
    assert any(line.startswith("PROBLEM") and said in line and "dir_owner" in line for line in done.stdout.splitlines())
    for command in ("dump", "top", "prune"):
        done = run(command, *options, *{"top": ["--once"], "prune": ["--yes"]}.get(command, []))
        assert said in complaint(done, 1)
    allowed = {"JOBMETRICS_DIR_OWNER": str(ALICE)}
    assert "jobs_total{" in run("dump", *options, variables=allowed).stdout
    assert said not in run("check", *options, "--listen", "127.0.0.1:1", variables=allowed).stdout


def test_check_lists_errors_in_the_environment_and_the_file(registry_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "jobmetrics.toml"
    file.write_text("max_labels = 'x'\n[exporter]\nrq_ur = 'y'\n")
    variables = {
        "JOBMETRICS_MAX_SERIES": "x", "JOBMETRICS_CONFIG": str(file), "JOBMETRICS_SERVICE_HOST": "10.0.0.1",
        "JOBMETRICS_EXPORTER_NONSENSE": "hidden-word",
    }  # fmt: skip
    done = run("check", "--dir", str(registry_dir), "--listen", "127.0.0.1:1", variables=variables)
    assert (done.returncode, done.stderr) == (1, "")
    problems = [line for line in done.stdout.splitlines() if line.startswith("PROBLEM")]
    assert "max_labels (in " in problems[0]
    assert "JOBMETRICS_MAX_SERIES='x' is not allowed; it takes a whole number from 1 to 10000000; " in problems[1]
    assert "unknown key exporter.rq_ur" in problems[2]
    notes = [line for line in done.stdout.splitlines() if "ignored" in line and line.startswith("note")]
    assert "JOBMETRICS_SERVICE_HOST is not a setting and is ignored" in notes[0]
    assert "Kubernetes" in notes[0]
    assert "JOBMETRICS_EXPORTER_NONSENSE is not a setting and is ignored" in notes[1]
    assert "Kubernetes" not in notes[1]
    assert "hidden-word" not in done.stdout


def test_check_finds_two_applications_in_the_default_directory(
    registry_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    active_settings = settings.load({"JOBMETRICS_DIR": str(registry_dir)})
    with recording(registry_dir), recording(registry_dir):
        monkeypatch.setattr(diagnosis, "default_dir", lambda: str(registry_dir))
        assert not any("JOBMETRICS_APP" in found.remedy for found in diagnosis.directory(active_settings))
        with recording(registry_dir, cwd=tmp_path):
            (found,) = [found for found in diagnosis.directory(active_settings) if "JOBMETRICS_APP" in found.remedy]
            assert (found.state, str(tmp_path) in found.text) == (NOTE, True)
            monkeypatch.setattr(diagnosis, "default_dir", lambda: "/elsewhere")
            assert not any("JOBMETRICS_APP" in found.remedy for found in diagnosis.directory(active_settings))


def test_names_of_jobs_and_variables_reach_no_terminal_as_control_characters(registry_dir: Path) -> None:
    name = "\x1b]0;title\x07\x1b[31m\x9b2J\u202ered"
    BoundHistogram(Writer(settings.load({}, dir=registry_dir)), JOBS_DURATION, ("celery", name, "mail")).observe(1.0)
    where, variables = ("--dir", str(registry_dir)), {"JOBMETRICS_\x1b[31mX": "1"}
    check = run("check", *where, "--listen", "127.0.0.1:1", variables=variables)
    assert r"waits unknown for \x1b]0;title\x07" in check.stdout
    assert r"JOBMETRICS_\x1b[31mX is not a setting" in check.stdout
    assert check.stdout.replace("\n", "").isprintable()
    dump = run("dump", *where, variables=variables)
    assert r"JOBMETRICS_\x1b[31mX is not a setting" in dump.stderr
    assert dump.stderr.replace("\n", "").isprintable()
    assert name in dump.stdout, "a pipe gets the exposition unchanged"


def test_dump_on_a_terminal_shows_control_characters_as_escapes(registry_dir: Path) -> None:
    record(registry_dir, ("start", "one", "\x1b[31mred"), ("end", "one"))
    main, side = pty.openpty()
    with subprocess.Popen([*COMMAND, "dump", "--dir", str(registry_dir)], stdin=side, stdout=side, stderr=side) as dump:
        os.close(side)
        said = b""
        with contextlib.suppress(OSError):  # the other end is closed
            while chunk := os.read(main, 65536):
                said += chunk
        os.close(main)
    assert dump.returncode == 0
    assert rb'job_type="\x1b[31mred"' in said
    assert b"\x1b" not in said


def test_check_with_a_wrong_option_is_one_clear_line() -> None:
    assert "--listen='here'" in complaint(run("check", "--listen", "here"))


# ------------------------------------------------------------------ top


@pytest.mark.parametrize(
    ("terminal", "times"), [(80, ["-", "4.8s"]), (140, ["-", "-", "25ms", "4.8s"])], ids=["80", "140"]
)
def test_top_once_is_readable(registry_dir: Path, tmp_path: Path, terminal: int, times: list[str]) -> None:
    with running(registry_dir, tmp_path / "log") as exporter, recording(registry_dir):
        # No proxy is used for a loopback address.
        variables = {"COLUMNS": str(terminal), "http_proxy": "http://127.0.0.1:1"}
        for source in (("--dir", str(registry_dir)), ("--url", f"{exporter.url}/metrics")):
            done = run("top", "--once", "--interval", "0.1", *source, variables=variables)
            assert (done.returncode, done.stderr) == (0, ""), source
            assert columns(done.stdout) <= terminal, source
            (line,) = [line for line in done.stdout.splitlines() if line.strip().startswith("celery app.resize ")]
            job, queue, rate, failed, retried, running_now, oldest, *found = line.split()[1:]
            assert (job, queue, rate, failed, retried, running_now) == ("app.resize", "mail", "0.0", "-", "-", "1")
            assert re.fullmatch(r"\d+d", oldest)
            assert found == times, source
            assert "an execution of app.resize (celery) has been running for" in done.stdout


def test_top_keeps_the_end_of_a_long_name(registry_dir: Path) -> None:
    record(registry_dir, ("start", "one", "shop.orders.tasks.export.weekly_report"), ("end", "one"))
    variables = {"COLUMNS": "80"}
    done = run("top", "--once", "--interval", "0.1", "--dir", str(registry_dir), variables=variables)
    assert ".weekly_report" in done.stdout
    assert columns(done.stdout) <= 80


def test_top_shows_control_characters_as_escapes(registry_dir: Path) -> None:
    name = "\x1b]0;title\x07\x1b[31m\x9b2J\u202ered"
    record(registry_dir, ("start", "one", name), ("end", "one"))
    done = run("top", "--once", "--interval", "0.1", "--dir", str(registry_dir), variables={"COLUMNS": "160"})
    assert (done.returncode, done.stderr) == (0, "")
    assert r"\x1b]0;title\x07\x1b[31m\x9b2J\u202ered" in done.stdout
    assert done.stdout.replace("\n", "").isprintable()


def test_top_of_an_unreadable_source_is_one_clear_line(tmp_path: Path) -> None:
    assert "does not exist" in complaint(run("top", "--once", "--dir", str(tmp_path / "none")), 1)
    line = complaint(run("top", "--once", "--url", "http://u:hidden-word@127.0.0.1:1/metrics"), 1)
    assert "http://***@127.0.0.1:1/metrics cannot be read" in line
    assert "hidden-word" not in line
    assert "--url" in complaint(run("top", "--once", "--url", "file:///etc/passwd"))


def test_top_runs_on_a_terminal_until_ctrl_c(registry_dir: Path) -> None:
    with recording(registry_dir):
        main, side = pty.openpty()
        process = subprocess.Popen(
            [*COMMAND, "top", "--dir", str(registry_dir), "--interval", "0.2"],
            env={**os.environ, "TERM": "xterm", "COLUMNS": "80", "LINES": "24"},
            stdin=side, stdout=side, stderr=side, start_new_session=True,
        )  # fmt: skip
        os.close(side)
        os.set_blocking(main, False)
        said = b""

        def heard(what: bytes) -> bool:
            nonlocal said
            with contextlib.suppress(OSError):  # nothing to read now, or the other end is closed
                said += os.read(main, 65536)
            return what in said

        def ended() -> bool:
            heard(b"")  # read on: a terminal that is not read fills up and blocks its writer
            return process.poll() is not None

        try:
            until(lambda: heard(b"app.resize"), "the picture", LIMIT)
            psutil.Process(process.pid).send_signal(2)
            until(ended, "its end", LIMIT)
            assert process.returncode == 0
            assert b"Traceback" not in said
            assert re.search(rb"\x1b\[\?1049h", said), "the alternate screen"
        finally:
            process.kill()
            process.wait()
            os.close(main)
