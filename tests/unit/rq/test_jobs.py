"""Names and timestamps of jobs that RQ has serialised."""

from __future__ import annotations

import json
import pickle
from datetime import datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any

import pytest

from jobmetrics.rq.jobs import LONGEST_NAME, UNKNOWN, execution_id, function_name, job_of, ready_at


def job(**attributes: Any) -> Any:
    defaults = {"id": "1", "data": b"", "func_name": "said.by.rq", "origin": "high", "enqueued_at": None}
    return SimpleNamespace(**{**defaults, **attributes})


@pytest.mark.parametrize("protocol", range(1, pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize("name", ["app.jobs.send", "app.\u00e4\U0001f600", "x" * 300])
def test_name_is_read_from_a_pickle_of_any_protocol(protocol: int, name: str) -> None:
    assert function_name(pickle.dumps((name, None, (1,), {"b": 2}), protocol)) == name


@pytest.mark.parametrize("name", ["app.jobs.send", 'quo"ted', "app.\u00e4"])
def test_name_is_read_from_json(name: str) -> None:
    assert function_name(json.dumps([name, None, [1], {"b": 2}]).encode()) == name


def test_name_that_is_too_long_is_cut() -> None:
    assert function_name(pickle.dumps(("x" * 1_000_000, None, (), {}))) == "x" * LONGEST_NAME


@pytest.mark.parametrize(
    "data",
    [b"", b"\x80", b"\x80\x04\x95", b"(((((((((((", b'["', b'["unfinished', b"[1]", b"nonsense", None, "text", 5,
     pickle.dumps((None, None, (), {})), pickle.dumps({"a": 1})],
)  # fmt: skip
def test_other_data_has_no_name(data: object) -> None:
    assert function_name(data) in (None, "")


def test_nothing_is_unpickled_for_the_name() -> None:
    data = pickle.dumps(("app.jobs.send", None, (), {}))[:-1] + b"garbage that no unpickler takes"
    assert job_of(job(data=data)).job_type == "app.jobs.send"


def test_rq_gives_the_name_if_the_data_does_not() -> None:
    assert job_of(job(data=b"by a serialiser of one's own")).job_type == "said.by.rq"
    assert job_of(job(func_name=None)).job_type == UNKNOWN


def test_queue_is_the_one_it_came_from() -> None:
    assert job_of(job(), SimpleNamespace(name="low")).queue_name == "low"
    assert job_of(job()).queue_name == "high"
    assert job_of(job(origin="")).queue_name == UNKNOWN


def test_naive_timestamps_are_utc() -> None:
    at = datetime(2026, 1, 31, 12, tzinfo=timezone.utc)
    naive = at.replace(tzinfo=None)
    elsewhere = at.astimezone(timezone(timedelta(hours=5)))
    assert ready_at(job(enqueued_at=naive)) == ready_at(job(enqueued_at=elsewhere)) == at.timestamp()
    assert ready_at(job()) is None


def test_execution_id_is_rqs_or_made_of_the_enqueue_time() -> None:
    worker = SimpleNamespace(execution=SimpleNamespace(id="e"))
    assert execution_id(worker, job()) == "1:e"
    first = execution_id(None, job(enqueued_at=datetime(2026, 1, 1, tzinfo=timezone.utc)))
    assert first != execution_id(None, job(enqueued_at=datetime(2026, 1, 2, tzinfo=timezone.utc)))
    assert first.startswith("1@")
