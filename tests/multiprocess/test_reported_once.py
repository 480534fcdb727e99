"""Several processes learn at the same time that another one died in its job: it counts once."""

from __future__ import annotations

import multiprocessing
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from jobmetrics.events import FAILURE, Job, Lost, Started
from jobmetrics.recorder import Recorder
from jobmetrics.registry.write.writer import Writer
from jobmetrics.settings import Settings
from tests.support.readings import assert_durations_add_up, values

JOB = Job("celery", "app.task", "jobs")
REPORTERS, ROUNDS = 6, 40


def _recorder(path: Path) -> Recorder:
    settings = Settings(dir=str(path), propagate_errors=True)
    return Recorder(Writer(settings), settings)


def _die(path: Path, name: str) -> None:
    _recorder(path).started(Started(JOB, name))
    os.kill(os.getpid(), signal.SIGKILL)


def _report(path: Path, barrier: Any) -> None:
    recorder = _recorder(path)
    for number in range(ROUNDS):
        barrier.wait()
        recorder.lost(Lost(JOB, str(number), FAILURE, "WorkerLostError", process_died=True))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="forks")
def test_simultaneous_reporters_count_a_lost_execution_once(registry_dir: Path) -> None:
    context = multiprocessing.get_context("fork")
    for number in range(ROUNDS):
        victim = context.Process(target=_die, args=(registry_dir, str(number)))
        victim.start()
        victim.join()
    barrier = context.Barrier(REPORTERS)
    reporters = [context.Process(target=_report, args=(registry_dir, barrier)) for _ in range(REPORTERS)]
    for each in reporters:
        each.start()
    for each in reporters:
        each.join(120)
    assert [each.exitcode for each in reporters] == [0] * REPORTERS
    assert values(registry_dir, "jobs_total") == {(*JOB, FAILURE): ROUNDS}
    assert values(registry_dir, "jobs_worker_processes_lost_total") == {("celery",): ROUNDS}
    assert_durations_add_up(registry_dir)
