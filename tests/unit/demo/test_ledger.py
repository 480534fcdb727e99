from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from demo import ledger

ROOT = Path(__file__).parents[3]


def outcome_of(error: BaseException) -> str:
    return ledger.RETRY if isinstance(error, TimeoutError) else ledger.FAILURE


def run_in(folder: Path) -> ledger.Run:
    return ledger.Run(folder, "7f", None, "demo-celery", "demo-rq")


def entry(job_id: str, outcome: str = ledger.SUCCESS, system: str = "celery") -> ledger.Entry:
    return ledger.Entry(system, "hash_file", job_id, outcome, "")


@pytest.mark.parametrize(
    ("error", "outcome", "error_type"),
    [
        (None, "success", ""),
        (ValueError("no"), "failure", "ValueError"),
        (TimeoutError("later"), "retry", "TimeoutError"),
        (SystemExit(3), "failure", "SystemExit"),
    ],
)
def test_an_execution_writes_one_line_however_it_ends(
    tmp_path: Path, error: BaseException | None, outcome: str, error_type: str
) -> None:
    def run() -> None:
        with ledger.execution(run_in(tmp_path).ledger, "rq", "hash_file", "7", outcome_of):
            if error is not None:
                raise error

    if error is None:
        run()
    else:
        with pytest.raises(type(error)):
            run()
    (line,) = (run_in(tmp_path).ledger).read_text().splitlines()
    found = json.loads(line)
    assert found == {
        "system": "rq",
        "job_type": "hash_file",
        "id": "7",
        "outcome": outcome,
        "error_type": error_type,
    }


def test_lines_of_many_processes_stay_complete(tmp_path: Path) -> None:
    writer = (
        "import sys; from pathlib import Path; from demo import ledger\n"
        "for n in range(300):\n"
        "    ledger.append(Path(sys.argv[1]), ledger.Sent('rq', 'job' * 50, f'{sys.argv[2]}-{n}'))\n"
    )
    path = str(run_in(tmp_path).sent)
    running = [subprocess.Popen([sys.executable, "-c", writer, path, str(number)], cwd=ROOT) for number in range(4)]
    assert [process.wait() for process in running] == [0] * 4
    read = ledger.Ledger(run_in(tmp_path))
    assert read.update() == 1200
    assert len({job.id for job in read.sent}) == 1200


def test_an_incomplete_line_is_read_once_it_is_complete(tmp_path: Path) -> None:
    ledger.append(run_in(tmp_path).ledger, entry("1"))
    ledger.append(run_in(tmp_path).ledger, entry("2"))
    whole = (run_in(tmp_path).ledger).read_bytes()
    (run_in(tmp_path).ledger).write_bytes(whole[:-5])
    read = ledger.Ledger(run_in(tmp_path))
    assert read.update() == 1
    (run_in(tmp_path).ledger).write_bytes(whole)
    assert read.update() == 1
    assert [found.id for found in read.entries] == ["1", "2"]
    assert read.update() == 0


def test_a_job_is_outstanding_until_its_final_line(tmp_path: Path) -> None:
    read = ledger.Ledger(run_in(tmp_path))
    assert read.outstanding() == 0
    for system, job_id in (("celery", "1"), ("celery", "2"), ("rq", "3")):
        ledger.append(run_in(tmp_path).sent, ledger.Sent(system, "hash_file", job_id))
    ledger.append(run_in(tmp_path).ledger, entry("1", ledger.RETRY))
    read.update()
    assert (read.outstanding(), read.outstanding("celery"), read.outstanding("rq")) == (3, 2, 1)
    ledger.append(run_in(tmp_path).ledger, entry("1"))
    ledger.append(run_in(tmp_path).ledger, entry("2", ledger.FAILURE))
    read.update()
    assert (read.outstanding(), read.outstanding("celery"), read.outstanding("rq")) == (1, 0, 1)


def test_a_job_may_be_over_before_it_is_noted_as_sent(tmp_path: Path) -> None:
    read = ledger.Ledger(run_in(tmp_path))
    ledger.append(run_in(tmp_path).ledger, entry("1"))
    read.update()
    ledger.append(run_in(tmp_path).sent, ledger.Sent("celery", "hash_file", "1"))
    read.update()
    assert read.outstanding() == 0


def test_a_job_that_is_killed_has_written_its_line_before(tmp_path: Path) -> None:
    path = run_in(tmp_path).ledger
    with ledger.execution(path, "celery", "celery_app.tasks.exhaust_memory", "1", outcome_of):
        (line,) = path.read_text().splitlines()
    assert json.loads(line)["error_type"] == "WorkerLostError"
    assert path.read_text().splitlines() == [line], "one line, even if it was not killed"


def test_a_run_is_readable_by_its_user_only(tmp_path: Path) -> None:
    run = ledger.Run(tmp_path, "7f", "redis://:secret@localhost/0", "demo-celery-7f", "demo-rq-7f")
    run.save()
    (file,) = tmp_path.iterdir()
    assert file.stat().st_mode & 0o777 == 0o600
    assert ledger.Run.load({"DEMO_HOME": str(tmp_path)}) == run
