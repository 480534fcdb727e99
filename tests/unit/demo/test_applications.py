from __future__ import annotations

from pathlib import Path

import pytest

from jobmetrics.demo import applications
from jobmetrics.demo.errors import DemoError


def test_a_checkout_runs_its_own_examples() -> None:
    assert applications.folder() == Path(__file__).parents[3] / "examples"


def test_a_wheel_runs_those_within_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, beside = tmp_path / "inside", tmp_path / "beside"
    for place in (inside, beside):
        for name in applications.APPLICATIONS:
            (place / name).mkdir(parents=True)
            (place / name / "__init__.py").touch()
    monkeypatch.setattr(applications, "PLACES", (inside, beside))
    assert applications.folder() == inside
    (inside / "shop" / "__init__.py").unlink()
    assert applications.folder() == beside


def test_without_them_there_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(applications, "PLACES", (tmp_path / "one", tmp_path / "two"))
    with pytest.raises(DemoError, match=r"neither \S+one nor \S+two"):
        applications.folder()
