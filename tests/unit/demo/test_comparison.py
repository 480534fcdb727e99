from __future__ import annotations

import io
from collections.abc import Iterable

import pytest
from prometheus_client.parser import text_string_to_metric_families
from rich.console import Console

from demo import comparison, ledger
from demo.comparison import Account, Comparison, Samples, compare

SENT = [ledger.Sent("celery", "verify", "1"), ledger.Sent("celery", "verify", "2")]
RAN = [
    ledger.Entry("celery", "verify", "1", "retry", "NotYet"),
    ledger.Entry("celery", "verify", "2", "failure", "SyntaxError"),
    ledger.Entry("celery", "verify", "1", "success", ""),
]
QUEUES = {"celery": "files"}
COMMON = 'system="celery",job_type="verify",queue_name="files"'
AGREEING = (
    f'jobs_total{{{COMMON},status="success"}} 1',
    f'jobs_total{{{COMMON},status="failure"}} 1',
    f'jobs_total{{{COMMON},status="retry"}} 1',
    f"jobs_retries_total{{{COMMON}}} 1",
    f'jobs_failures_total{{{COMMON},error_type="SyntaxError"}} 1',
    f"jobs_duration_seconds_count{{{COMMON}}} 3",
    f"jobs_duration_unknown_total{{{COMMON}}} 0",
    f"jobs_queue_wait_seconds_count{{{COMMON}}} 3",
    f"jobs_published_total{{{COMMON}}} 2",
    f"jobs_active{{{COMMON}}} 0",
    'jobs_queue_depth{system="celery",broker="default",queue_name="files"} 0',
)


def samples_of(lines: Iterable[str]) -> Samples:
    return Samples(text_string_to_metric_families("\n".join(lines) + "\n"))


def comparing(
    lines: tuple[str, ...] = AGREEING,
    sent: list[ledger.Sent] | None = None,
    ran: list[ledger.Entry] | None = None,
) -> list[Comparison]:
    account = Account(SENT if sent is None else sent, RAN if ran is None else ran)
    return compare(account, samples_of(lines), QUEUES, with_depth=True)


def different(comparisons: list[Comparison]) -> list[str]:
    return [str(comparison) for comparison in comparisons if not comparison.agrees]


def verdict(comparisons: list[Comparison], executions: int) -> tuple[bool, str]:
    written = io.StringIO()
    agreed = comparison.verdict(Console(file=written, soft_wrap=True), comparisons, executions)
    return agreed, written.getvalue()


def without(metric: str) -> tuple[str, ...]:
    return tuple(line for line in AGREEING if not line.startswith(metric))


def with_line(metric: str, line: str) -> tuple[str, ...]:
    return (*without(metric), line)


def test_equal_counts_are_printed_line_by_line() -> None:
    found = comparing()
    assert different(found) == []
    lines = [str(comparison) for comparison in found]
    assert "celery verify jobs: sent 2 = ledger 2 = counted 2" in lines
    assert "celery verify retry: ledger 1 = counted 1" in lines
    assert "celery verify failures SyntaxError: ledger 1 = counted 1" in lines
    assert "celery verify published: sent 2 = counted 2" in lines
    agreed, said = verdict(found, 3)
    assert agreed
    assert all(line in said for line in lines)
    assert "sent = ledger = counted: 3 executions" in said


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (without("jobs_total{" + COMMON + ',status="success"'), "verify success: ledger 1 != counted 0"),
        (without("jobs_total{" + COMMON + ',status="success"'), "jobs: sent 2 != ledger 2 != counted 1"),
        ((*AGREEING, f'jobs_total{{{COMMON},status="revoked"}} 1'), "revoked: ledger 0 != counted 1"),
        (without("jobs_retries_total"), "retries: ledger 1 != counted 0"),
        (with_line("jobs_failures_total", f'jobs_failures_total{{{COMMON},error_type="EOFError"}} 1'), "EOFError"),
        (without("jobs_duration_seconds"), "durations: ledger 3 != counted 0"),
        (without("jobs_duration_seconds"), "jobs_total 3 != durations known and unknown 0"),
        (without("jobs_queue_wait"), "waits: ledger 3 != counted 0"),
        (with_line("jobs_published", f"jobs_published_total{{{COMMON}}} 3"), "published: sent 2 != counted 3"),
        (with_line("jobs_active", f"jobs_active{{{COMMON}}} 1"), "running now: expected 0 != counted 1"),
        (without("jobs_queue_depth"), "waiting in queue files: expected 0 != counted nothing"),
        (tuple(line.replace("files", "others") for line in AGREEING), "of queue files: ledger 3 != counted 0"),
        ((*AGREEING, 'jobs_total{system="rq",job_type="x",queue_name="q",status="success"} 1'), "rq x jobs: "),
    ],
)  # fmt: skip
def test_metrics_that_differ_are_reported(lines: tuple[str, ...], said: str) -> None:
    found = comparing(lines)
    assert any(said in line for line in different(found)), different(found)
    agreed, printed = verdict(found, 3)
    assert not agreed
    assert said in printed
    assert "DIFFERENT" in printed


def test_a_job_that_never_ran_is_reported() -> None:
    found = comparing(sent=[*SENT, ledger.Sent("celery", "verify", "3")])
    assert "celery verify jobs: sent 3 != ledger 2 != counted 2" in different(found)


def test_a_job_that_ended_twice_is_reported() -> None:
    found = comparing(ran=[*RAN, ledger.Entry("celery", "verify", "1", "success", "")])
    assert any("more than once in the ledger: expected 0 != ledger 1" in line for line in different(found))


def test_a_negative_live_gauge_does_not_hide_a_positive_one() -> None:
    other = COMMON.replace("verify", "hash")
    lines = with_line("jobs_active", f"jobs_active{{{COMMON}}} 1\njobs_active{{{other}}} -1")
    assert any("running now: expected 0 != counted 2" in line for line in different(comparing(lines)))


def test_absent_published_and_unread_depth_are_not_compared() -> None:
    account = Account(SENT, RAN)
    lines = [line for line in without("jobs_published") if not line.startswith("jobs_queue_depth")]
    found = compare(account, samples_of(lines), QUEUES, with_depth=False)
    assert different(found) == []
    assert not any("published" in str(comparison) or "waiting" in str(comparison) for comparison in found)


def test_nothing_to_compare_is_a_failure() -> None:
    account = Account([], [])
    found = compare(account, samples_of(()), QUEUES, with_depth=False)
    agreed, said = verdict(found, 0)
    assert not agreed
    assert "nothing to compare" in said


def test_large_counts_are_shown_in_full() -> None:
    assert str(Comparison("x", (("sent", 1234567), ("counted", 1234567.0)))) == "x: sent 1234567 = counted 1234567"


def test_a_killed_process_is_compared() -> None:
    killed = ledger.Entry("celery", "verify", "3", "failure", "WorkerLostError")
    found = different(comparing(ran=[*RAN, killed]))
    assert "celery processes killed: ledger 1 != counted 0" in found
    lines = (*AGREEING, 'jobs_worker_processes_lost_total{system="celery"} 1')
    assert not any("killed" in line for line in different(comparing(lines, ran=[*RAN, killed])))


def test_the_table_shows_every_number_in_80_columns() -> None:
    labels = 'system="rq",job_type="rq_app.jobs.decompress_file",queue_name="q"'
    lines = [
        f'jobs_total{{{labels},status="{status}"}} {count}'
        for status, count in (("success", 12000), ("failure", 345), ("retry", 1234))
    ]
    lines += [
        f'jobs_duration_seconds_bucket{{{labels},queue="{queue}",le="{le}"}} 4'
        for queue in (1, 2)
        for le in ("0.1", "+Inf")
    ]
    written = io.StringIO()
    sent = [ledger.Sent("celery", "celery_app.verify_delivery", str(number)) for number in range(12345)]
    Console(file=written, width=80).print(comparison.table(Account(sent, []), samples_of(lines)))
    rows = [line.split() for line in written.getvalue().splitlines()]
    assert ["celery"] in rows
    assert ["verify_delivery", "12345", "0", "0", "0", "-", "-", "-"] in rows
    assert ["decompress_file", "0", "12000", "345", "1234", "50ms", "95ms", "-"] in rows


def test_a_quantile_is_of_all_series_of_a_job_type() -> None:
    lines = [
        f'wait_bucket{{job_type="{job}",queue_name="{queue}",le="{le}"}} {count}'
        for job, queue, counts in (("a", "x", (4, 4, 4)), ("a", "y", (0, 4, 4)), ("b", "x", (0, 90, 90)))
        for le, count in zip(("1.0", "2.0", "+Inf"), counts, strict=True)
    ]
    assert samples_of(lines).quantile(0.75, "wait", job_type="a") == pytest.approx(1.5)
    assert samples_of(lines).quantile(0.75, "wait", job_type="c") is None
