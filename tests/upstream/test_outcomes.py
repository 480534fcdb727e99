"""When a job system's own tests prove a defect of jobmetrics: with flaky tests among them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.upstream.outcomes import RERUNS, Results, always_worse, read_report

TEST = "t.unit.test_app::test_a_task"
OTHER = "t.unit.test_app::test_that_is_equal"

Outcomes = list[tuple[str, str]]
"""What one test gave in each run, bare and with jobmetrics; an empty string: it was absent."""


def compared(outcomes: Outcomes) -> tuple[set[str], int]:
    """The tests with a worse result in each run, and how many runs there were."""
    left = iter(outcomes)
    runs = 0

    def run(names: set[str]) -> tuple[Results, Results]:
        nonlocal runs
        runs += 1
        assert names == {TEST}, "only what was worse runs again"
        bare, ours = next(left)
        return ({TEST: bare} if bare else {}), ({TEST: ours} if ours else {})

    bare, ours = run({TEST})
    return always_worse({**bare, OTHER: "passed"}, {**ours, OTHER: "passed"}, run), runs


@pytest.mark.parametrize(
    ("bare", "ours"),
    [
        ("passed", "failure"),
        ("passed", "error"),
        ("passed", "skipped"),
        ("passed", ""),
        ("passed", "failure+passed"),
        ("failure+passed", "failure"),
        ("skipped", "failure"),
        ("", "error"),
    ],
)
def test_a_worse_result_in_each_run_is_a_defect(bare: str, ours: str) -> None:
    assert compared([(bare, ours)] * (1 + RERUNS)) == ({TEST}, 1 + RERUNS)


@pytest.mark.parametrize(
    ("bare", "ours"),
    [("failure", "passed"), ("failure", "error"), ("failure+passed", "passed"), ("skipped", "passed"), ("", "passed")],
)
def test_a_result_that_is_not_worse_is_printed_and_is_not_run_again(
    bare: str, ours: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert compared([(bare, ours)]) == (set(), 1)
    assert capsys.readouterr().out == f"differs: {TEST}: bare {bare or 'absent'}, with jobmetrics {ours}\n"


@pytest.mark.parametrize("last", [("passed", "passed"), ("failure", "failure"), ("failure", "passed")])
def test_a_flaky_test_is_printed_with_all_its_results(
    last: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert compared([("passed", "failure"), ("passed", "failure"), last]) == (set(), 3)
    once = "bare passed, with jobmetrics failure"
    assert capsys.readouterr().out.splitlines()[-1] == (
        f"differs: {TEST}: {once}; again: {once}; again: bare {last[0]}, with jobmetrics {last[1]}"
    )


def test_a_test_that_cannot_be_run_again_is_a_defect(capsys: pytest.CaptureFixture[str]) -> None:
    assert compared([("passed", "failure"), *[("", "")] * RERUNS]) == ({TEST}, 1 + RERUNS)
    assert capsys.readouterr().out.splitlines()[-1].startswith(f"always worse: {TEST}: bare passed, with jobmetrics")


def test_equal_results_print_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    assert compared([("failure", "failure")]) == (set(), 1)
    assert capsys.readouterr().out == ""


def test_a_report_of_a_run_that_broke_off_has_the_tests_before(tmp_path: Path) -> None:
    report = tmp_path / "report.xml"
    report.write_text(
        '<testsuite><testcase classname="t.test_app" name="test_first"/>'
        '<testcase classname="t.test_app" name="test_second"><failure/></testcase>'
        '<testcase classname="t.test_app" name="test_second"/>'
        '<testcase classname="" name="t.test_broken"><error/></testcase>'
        '<testcase time="0.8"/>'
        '<testcase classname="pytest" name="internal"><error/></testcase></testsuite>'
    )
    assert read_report(report) == {"t.test_app::test_first": "passed", "t.test_app::test_second": "failure+passed"}
    assert read_report(tmp_path / "missing.xml") == {}
