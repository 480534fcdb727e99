from __future__ import annotations

import logging
from pathlib import Path

import pytest

from jobmetrics import settings
from jobmetrics.registry import current


def test_process_has_one_writer(in_force: settings.Settings) -> None:
    assert current.writer() is current.writer()


def test_writer_records_into_the_directory_in_force(in_force: settings.Settings, registry_dir: Path) -> None:
    assert current.writer().directory.path == str(registry_dir)


def test_settings_put_in_force_later_make_another_writer(in_force: settings.Settings, tmp_path: Path) -> None:
    first = current.writer()
    settings.configure(dir=tmp_path / "other")
    assert current.writer() is not first
    assert current.writer().directory.path == str(tmp_path / "other")


def test_asking_for_the_writer_makes_no_directory(tmp_path: Path) -> None:
    settings.configure(dir=tmp_path / "other")
    current.writer()
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("value", ["many", "0"])
def test_bad_environment_switches_recording_off(monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv("JOBMETRICS_MAX_SERIES", value)
    assert current.writer().enabled is False


@pytest.mark.parametrize("line", ["max_series = inf", "dir = 5", "nonsense", "buckets = {x = [1, 1" + "0" * 400 + "]}"])
def test_bad_file_switches_recording_off(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, line: str) -> None:
    file = tmp_path / "jobmetrics.toml"
    file.write_text(line)
    monkeypatch.setenv("JOBMETRICS_CONFIG", str(file))
    assert current.writer().enabled is False


def test_bad_environment_is_logged_once_in_one_line(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("JOBMETRICS_MAX_SERIES", "many")
    current.writer()
    current.writer()
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.getMessage().startswith("jobmetrics: recording is off: JOBMETRICS_MAX_SERIES='many' is not allowed")
    assert record.exc_info is None
