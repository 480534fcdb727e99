"""CPU time of functions that run in steps: coroutines and generators.

Between two steps, other tasks or the consumer of the generator run. So the CPU time is measured step by step, and a
generator is the running job only during its steps. Values and exceptions that are sent into it are passed on unchanged.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from jobmetrics.job_context import Execution, running


def steps(body: Any, execution: Execution) -> Generator[Any, Any, Any]:
    """Run a coroutine or generator as `yield from` does, and add its CPU time to the execution."""
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
            thrown = None  # its traceback refers to this frame: drop the reference cycle
            if execution.cpu is not None:
                execution.cpu += cpu_clock() - start
            running.reset(token)
        try:
            sent = yield yielded
        except BaseException as error:  # noqa: BLE001 - the body handles it, also GeneratorExit, which closes it
            sent, thrown = None, error


class Awaited:
    """Awaits an awaitable in measured steps."""

    __slots__ = ("_body", "_execution")

    def __init__(self, body: Any, execution: Execution) -> None:
        self._body = body
        self._execution = execution

    def __await__(self) -> Generator[Any, Any, Any]:
        return steps(self._body, self._execution)
