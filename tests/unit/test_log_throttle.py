from __future__ import annotations

import os
import threading

import pytest

from jobmetrics.log_throttle import ThrottledLog
from tests.unit.doubles import FakeClock


def test_each_subject_is_logged_once_a_minute(clock: FakeClock, caplog: pytest.LogCaptureFixture) -> None:
    throttled = ThrottledLog(clock)
    logged: list[bool] = []
    for seconds in (0.0, 0.0, 59.5, 0.5, 0.0):
        clock.advance(seconds)
        logged.append(throttled.warning("disk", "disk %d", len(logged)))
    assert logged == [True, False, False, True, False]
    assert throttled.warning("network", "network")
    assert [record.getMessage() for record in caplog.records] == ["disk 0", "disk 3", "network"]
    assert {(record.name, record.levelname) for record in caplog.records} == {("jobmetrics", "WARNING")}


def test_a_child_forked_in_the_middle_of_a_warning_still_logs() -> None:
    inside, go_on = threading.Event(), threading.Event()

    def clock() -> float:
        if threading.current_thread() is other:
            inside.set()
            go_on.wait()
        return 0.0

    throttled = ThrottledLog(clock)
    other = threading.Thread(target=throttled.warning, args=("disk", "disk"))
    other.start()
    inside.wait()
    child = os.fork()
    if child == 0:
        os._exit(0 if throttled.warning("disk", "disk of the child") else 1)
    go_on.set()
    other.join()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
