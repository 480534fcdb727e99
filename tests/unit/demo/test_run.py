from __future__ import annotations

import math

import pytest

from jobmetrics.demo import run


@pytest.mark.parametrize("seconds", [-1.0, math.nan, math.inf])
def test_a_bad_number_of_seconds_is_refused(seconds: float, capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(seconds) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(run, "REQUIRED", ("rich", "no_such_package"))
    assert run.main(1.0) == 1
    said = capsys.readouterr().err
    assert "no_such_package" in said
    assert "rich" not in said
    assert "jobmetrics[all]" in said
