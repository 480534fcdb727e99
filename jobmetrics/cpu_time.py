"""Functions that run in steps: coroutines and generators.

Between two of its steps such a function is not running: other tasks are, or the reader of the generator. So its
processor time is measured step by step, and a generator is the running job only within its steps. Values and
exceptions that are sent into it go through unchanged.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from jobmetrics.job_context import Execution, running


def steps(body: Any, execution: Execution) -> Generator[Any, Any, Any]:
    """Run what has send, throw and close, as `yield from` would, and add its processor time to the execution."""
    cpu_clock = execution.recorder.thread_cpu
    sent: Any = None
    thrown: BaseException | None = None
    while True:
        token = running.set(execution)
        start = cpu_clock()
        try:
            yielded = body.send(sent) if thrown is None else body.throw(thrown)
        except StopIteration as stop:
            return stop.value
        finally:
            thrown = None  # it knows this frame: keeping it here would keep both
            if execution.cpu is not None:
                execution.cpu += cpu_clock() - start
            running.reset(token)
        try:
            sent = yield yielded
        except BaseException as error:  # noqa: BLE001 - the body's to handle, GeneratorExit too: it is closed by it
            sent, thrown = None, error


class Awaited:
    """An awaitable's steps, to be awaited in its place."""

    __slots__ = ("_body", "_execution")

    def __init__(self, body: Any, execution: Execution) -> None:
        self._body = body
        self._execution = execution

    def __await__(self) -> Generator[Any, Any, Any]:
        return steps(self._body, self._execution)
