"""Invariant 12: a suppressed error is counted once: a forked child starts with empty error counts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from jobmetrics import guard
from tests.multiprocess.support import Worker, fork_without_hooks, in_child, run_and_exit
from tests.support.readings import values

ERRORS, CHILDREN = 3, 20


@pytest.mark.parametrize("fork", [os.fork, fork_without_hooks])
def test_errors_of_a_parent_are_not_counted_again_by_its_children(registry_dir: Path, fork: object) -> None:
    assert callable(fork)

    def run() -> None:
        one = Worker(registry_dir, propagate_errors=False)
        for _ in range(ERRORS):
            guard.note("here", OSError("x"))
        for number in range(CHILDREN):
            pid = fork()
            if pid == 0:
                if number == 0:
                    guard.note("there", OSError("x"))
                run_and_exit(one.job)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        one.job("parent")

    in_child(run)
    assert values(registry_dir, "jobmetrics_internal_errors_total") == {("here",): ERRORS, ("there",): 1.0}
