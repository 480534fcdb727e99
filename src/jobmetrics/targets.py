"""Target durations of tasks that exist before they have a name: `@timed_job(target=...)` above `@app.task`.

Asking a lazy task for its name would finish its app too early, so that is left until a job runs.
"""

from __future__ import annotations

from jobmetrics import guard

_by_job_type: dict[str, float] = {}
_unnamed: list[tuple[object, float]] = []


def declare(task: object, seconds: float) -> None:
    """Note the target duration, in seconds, of whatever task this turns out to be."""
    _unnamed.append((task, seconds))


def of(job_type: str) -> float | None:
    """The declared target duration of a job type, in seconds; None when none is declared."""
    for entry in list(_unnamed):
        task, seconds = entry
        try:
            _by_job_type[str(task.name)] = seconds  # type: ignore[attr-defined]  # a task of the job system
            _unnamed.remove(entry)
        except Exception as error:  # the task's app is not ready, or whatever a lazy object raises
            if guard.passes(error):
                raise
    return _by_job_type.get(job_type)
