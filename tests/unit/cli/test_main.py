"""Errors of the commands are one line, with the right exit code."""

from __future__ import annotations

import builtins
import sys
from pathlib import Path
from typing import Any

import click
import pytest

from jobmetrics import __version__
from jobmetrics.cli import main as entry
from jobmetrics.errors import CollectorError, DirectoryMissing, JobmetricsError, SettingsError

# The commands take over signals and the log, which are the test process's own: processes of their own
# test those, in tests/e2e/test_exporter.py.


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    monkeypatch.setattr(sys, "argv", ["jobmetrics", *arguments])
    with pytest.raises(SystemExit) as ended:
        entry.main()
    code = ended.value.code
    assert isinstance(code, int)
    return code


def complaint(capsys: pytest.CaptureFixture[str]) -> str:
    captured = capsys.readouterr()
    assert captured.out == ""
    (line,) = captured.err.splitlines()
    assert line.startswith("jobmetrics: ")
    return line


def test_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"jobmetrics {__version__}\n"


@pytest.mark.parametrize("arguments", [(), ("--help",), ("exporter", "--help"), ("dump", "-h")])
def test_help_fits_80_columns(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    assert run(monkeypatch, *arguments) == 0
    out = capsys.readouterr().out
    assert out.startswith("Usage: jobmetrics")
    assert max(map(len, out.splitlines())) <= 80


@pytest.mark.parametrize(
    "arguments",
    [
        ("nonsense",),
        ("--nonsense",),
        ("exporter", "--nonsense"),
        ("exporter", "extra"),
        ("exporter", "--listen"),
        ("exporter", "--refresh", "soon"),
        ("exporter", "--timeout", "-1"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, *arguments) == 2
    complaint(capsys)


@pytest.mark.parametrize(
    "line",
    [
        "celery_queue = 3",
        "celery_broker = [1, 2]",
        "rq_url = {a = 1}",
        "celery_app = 3",
        "web_config = 5",
        "refresh = [1]",
        "refresh = 1979-05-27",
        "timeout = true",
        "max_queues = 2.5",
        "max_queues = true",
        "log_format = 7",
    ],
)
def test_a_value_of_the_wrong_type_in_the_file_is_one_line(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "jobmetrics.toml"
    file.write_text(f"[exporter]\n{line}\n")
    monkeypatch.setenv("JOBMETRICS_CONFIG", str(file))
    assert run(monkeypatch, "dump", "--dir", str(tmp_path / "none")) == 2
    assert f"exporter.{line.partition(' ')[0]} (in {file}) is not allowed; it takes " in complaint(capsys)


def command(monkeypatch: pytest.MonkeyPatch, outcome: BaseException | int | None) -> None:
    """Replace a command by this outcome."""
    from jobmetrics.cli.group import jobmetrics

    def main(**_: Any) -> int | None:
        if isinstance(outcome, BaseException):
            raise outcome
        return outcome

    monkeypatch.setattr(jobmetrics, "main", main)


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (JobmetricsError("redis://:secret@h\nis down"), 1, "redis://***@h is down"),
        (SettingsError("--rq-url: redis://:secret@h is wrong"), 2, "--rq-url: redis://***@h is wrong"),
        (DirectoryMissing("/x does not exist yet"), 1, "/x does not exist yet"),
        (CollectorError("no answer"), 1, "no answer"),
        (click.UsageError("No such option: --x"), 2, "No such option: --x (see jobmetrics --help)"),
        (PermissionError(13, "Permission denied", "/x"), 1, "/x: Permission denied"),
        (ModuleNotFoundError("No module", name="uvicorn.server"), 1, "needs uvicorn.server; pip install"),
        (ZeroDivisionError("by zero"), 1, "unexpected ZeroDivisionError: by zero; this is a bug"),
    ],
)
def test_errors_are_one_line(
    error: Exception, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command(monkeypatch, error)
    assert run(monkeypatch) == code
    line = complaint(capsys)
    assert said in line
    assert "secret" not in line


@pytest.mark.parametrize(("outcome", "code"), [(None, 0), (0, 0), (1, 1), (KeyboardInterrupt(), 130)])
def test_exit_codes(outcome: BaseException | int | None, code: int, monkeypatch: pytest.MonkeyPatch) -> None:
    command(monkeypatch, outcome)
    assert run(monkeypatch) == code


READ_SIDE = ("jobmetrics.registry.read",)


@pytest.mark.parametrize("missing", ["click", "prometheus_client", "uvicorn", "numpy"])
def test_without_the_extra_the_error_names_it(
    missing: str, registry_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in list(sys.modules):
        if name.startswith(("jobmetrics.cli.", "jobmetrics.exporter", *READ_SIDE)):
            monkeypatch.delitem(sys.modules, name)
    real_import = builtins.__import__

    def without(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name.partition(".")[0] == missing:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real_import(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    assert run(monkeypatch, "exporter", "--dir", str(registry_dir), "--listen", "nonsense") == 1
    assert "pip install 'jobmetrics[exporter]'" in complaint(capsys)
