from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import servers

if sys.version_info < (3, 11):
    pytest.skip("grafana-foundation-sdk needs Python 3.11", allow_module_level=True)

ROOT = Path(__file__).parents[2]


@pytest.mark.full
@pytest.mark.first
@pytest.mark.timeout(600)
def test_the_plots_are_drawn_from_workers_under_load(tmp_path: Path) -> None:
    for name in ("redis-server", "prometheus"):
        servers.program(name)
    image = tmp_path / "overview.svg"
    command = [sys.executable, "-m", "dashboards.plots", "--seconds", "160", "--image", str(image)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    text = image.read_text(encoding="utf-8")
    # Phases with failures, their effects, and the systems that took part.
    for word in ("bad files arrive", "Celery worker stopped", "failure", "success", "celery running", "rq capacity"):
        assert f">{word}</text>" in text, word
