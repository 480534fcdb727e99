from __future__ import annotations

from typing import Any

import pytest

from jobmetrics import events
from jobmetrics.events import Ended, Job, Lost, Published, Started, Withdrawn

JOB = Job("celery", "app.resize", "images")
ALL = [JOB, Started(JOB, "1"), Ended("success"), Lost(JOB, "1", "failure"), Withdrawn(JOB, "expired"), Published(JOB)]


@pytest.mark.parametrize("event", ALL, ids=lambda event: type(event).__name__)
def test_event_is_frozen(event: Any) -> None:
    with pytest.raises(AttributeError):
        setattr(event, event._fields[0], "changed")


def test_equal_jobs_are_one_key() -> None:
    assert {JOB: 1}[Job("celery", "app.resize", "images")] == 1


def test_statuses_match_the_contract() -> None:
    assert events.STATUSES == ("success", "failure", "retry", "ignored", "rejected", "revoked")


def test_withdrawal_reasons_match_the_contract() -> None:
    assert events.WITHDRAWN_REASONS == ("revoked", "expired", "rejected", "unknown")


def test_a_lost_execution_has_no_dead_process_by_default() -> None:
    assert Lost(JOB, "1", "failure").process_died is False
