from __future__ import annotations

import logging
import subprocess
import sys
import time
from pathlib import Path

import pytest

from jobmetrics import Counter, guard, recorder, refresh, settings
from jobmetrics.families import DROPPED_UPDATES, INTERNAL_ERRORS
from jobmetrics.registry.write import current
from jobmetrics.testing import read_sample


def test_process_has_one_writer(active_settings: settings.Settings) -> None:
    assert current.writer() is current.writer()


def test_the_writer_records_into_the_active_directory(active_settings: settings.Settings, registry_dir: Path) -> None:
    assert current.writer().directory.path == str(registry_dir)


def test_settings_activated_later_make_another_writer(active_settings: settings.Settings, tmp_path: Path) -> None:
    first = current.writer()
    settings.configure(dir=tmp_path / "other")
    assert current.writer() is not first
    assert current.writer().directory.path == str(tmp_path / "other")


def test_asking_for_the_writer_makes_no_directory(tmp_path: Path) -> None:
    settings.configure(dir=tmp_path / "other")
    current.writer()
    assert not (tmp_path / "other").exists()


BAD_LINES = ["max_series = inf", "dir = 5", "nonsense", "buckets = {x = [1, 1" + "0" * 400 + "]}"]


@pytest.fixture
def default_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> str:
    """The default directory, for this test."""
    path = str(tmp_path / "default")
    monkeypatch.setattr(settings, "default_dir", lambda app="": path)
    monkeypatch.setattr(settings.Settings.__dataclass_fields__["dir"], "default_factory", lambda: path)
    return path


def errors(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]


@pytest.mark.parametrize(
    ("name", "value"), [("MAX_SERIES", "many"), ("MAX_SERIES", "0"), ("ENABLED", "maybe"), ("DIR", "")]
)
def test_a_bad_value_in_the_environment_does_not_prevent_recording(
    monkeypatch: pytest.MonkeyPatch, default_dir: str, name: str, value: str
) -> None:
    monkeypatch.setenv(f"JOBMETRICS_{name}", value)
    writer = current.writer()
    assert (writer.session.enabled, writer.max_series, writer.directory.path) == (True, 10_000, default_dir)


def test_a_default_directory_that_another_user_holds_is_logged_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, default_dir: str
) -> None:
    monkeypatch.setattr(settings, "default_dir", lambda app="": f"{default_dir}~2")
    with caplog.at_level(logging.INFO):
        recorder.default()
        recorder.default()
    (line,) = [record.getMessage() for record in caplog.records]
    assert line == f"jobmetrics: another user holds {default_dir}; recording goes to {default_dir}~2"


@pytest.mark.parametrize("line", BAD_LINES)
def test_a_bad_file_does_not_prevent_recording(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, default_dir: str, line: str
) -> None:
    file = tmp_path / "jobmetrics.toml"
    file.write_text(line)
    monkeypatch.setenv("JOBMETRICS_CONFIG", str(file))
    assert current.writer().session.enabled is True


def test_bad_values_are_logged_once_in_a_line_each_and_counted(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setenv("JOBMETRICS_DIR", str(tmp_path / "registry"))
    monkeypatch.setenv("JOBMETRICS_MAX_SERIES", "many")
    monkeypatch.setenv("JOBMETRICS_MAX_LABELS", "few")
    recorder.default().tick()
    recorder.default().tick()
    first, second = errors(caplog)
    assert first.startswith("jobmetrics: ignored, recording goes on without it: JOBMETRICS_MAX_LABELS='few' is not al")
    assert "JOBMETRICS_MAX_SERIES='many' is not allowed; it takes a whole number" in second
    assert not any(record.exc_info for record in caplog.records)
    counted = read_sample(INTERNAL_ERRORS.name, {"where": "settings"}, directory=str(tmp_path / "registry"))
    assert counted == 2


def test_unknown_variables_are_one_warning_and_no_error(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("JOBMETRICS_PORT", "tcp://10.0.0.1:9909")
    monkeypatch.setenv("JOBMETRICS_SERVICE_HOST", "10.0.0.1")
    assert current.writer().session.enabled is True
    current.writer()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert record.getMessage().startswith("jobmetrics: JOBMETRICS_PORT, JOBMETRICS_SERVICE_HOST are not settings and")
    assert guard.take_counts() == {}


DROPPED = {"reason": "negative", "metric": "shop_rows_total"}


@pytest.mark.parametrize("by", ["refresh", "labels", "a metric without labels"])
def test_dropped_updates_are_shown_without_jobs(
    by: str, active_settings: settings.Settings, registry_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows, plain = Counter("shop_rows", "Rows.", ["shop"]), Counter("shop_sales", "Sales.")
    plain.inc()
    rows.labels("north").inc(-1)
    guard.count("here")
    monkeypatch.setattr(current.writer(), "clock", lambda: time.monotonic() + 2)
    if by == "refresh":
        refresh()
    elif by == "labels":
        rows.labels("north")
    else:
        plain.inc()
    assert read_sample(DROPPED_UPDATES.name, DROPPED, directory=str(registry_dir)) == 1
    assert read_sample(INTERNAL_ERRORS.name, {"where": "here"}, directory=str(registry_dir)) == 1


def test_dropped_updates_are_shown_when_a_process_ends(registry_dir: Path) -> None:
    script = "import sys, jobmetrics as j; j.configure(dir=sys.argv[1]); j.Counter('shop_rows', 'Rows.').inc(-1)"
    subprocess.run([sys.executable, "-c", script, str(registry_dir)], check=True)
    assert read_sample(DROPPED_UPDATES.name, DROPPED, directory=str(registry_dir)) == 1
