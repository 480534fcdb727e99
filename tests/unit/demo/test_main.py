from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from demo.__main__ import main, seconds_of

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize("seconds", ["-1", "nan", "inf", "soon"])
def test_a_bad_number_of_seconds_is_refused(seconds: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main({"DEMO_SECONDS": seconds}) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert repr(seconds) in said


@pytest.mark.parametrize(("text", "seconds"), [("", None), ("0", 0.0), ("2.5", 2.5)])
def test_seconds_come_from_the_environment(text: str, seconds: float | None) -> None:
    assert seconds_of(text) == seconds


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("raise ModuleNotFoundError(name='redis')", "demo: redis is not installed; make demo installs everything\n"),
        ("raise ValueError('Invalid RQ_KEY_PREFIX')", "demo: RQ cannot be imported: Invalid RQ_KEY_PREFIX\n"),
        ("raise KeyboardInterrupt", "demo: ended by SIGINT\n"),
    ],
)
def test_a_failed_import_is_one_line(code: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "rich.py").write_text(code)
    environment = {"PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "demo"], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode in {1, 2, 130}
    assert done.stderr == said
