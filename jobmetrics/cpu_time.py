"""Functions that run in steps: coroutines and generators.

Between two of its steps such a function is not running: other tasks do, or whoever reads the generator. So its
processor time is measured step by step, and a generator is the running job only within its steps. What is sent
and thrown goes through unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from typing import Any

from jobmetrics.job_context import Execution, running

Clock = Callable[[], float]


def steps(body: Any, execution: Execution, clock: Clock) -> Generator[Any, Any, Any]:
    """Run whatever has send, throw and close, as `yield from` would, and add its processor time to the execution.

    clock: processor seconds of this thread.
    """
    sent: Any = None
    thrown: BaseException | None = None
    while True:
        token = running.set(execution)
        start = clock()
        try:
            yielded = body.send(sent) if thrown is None else body.throw(thrown)
        except StopIteration as stop:
            return stop.value
        finally:
            thrown = None  # it knows this frame: keeping it here would keep both
            if execution.cpu is not None:
                execution.cpu += clock() - start
            running.reset(token)
        try:
            sent = yield yielded
        except BaseException as error:  # noqa: BLE001 - the body's to handle, GeneratorExit too: it is closed by it
            sent, thrown = None, error


class Awaited:
    """An awaitable's steps, to be awaited in its place."""

    __slots__ = ("_body", "_clock", "_execution")

    def __init__(self, body: Any, execution: Execution, clock: Clock) -> None:
        self._body = body
        self._execution = execution
        self._clock = clock

    def __await__(self) -> Generator[Any, Any, Any]:
        return steps(self._body, self._execution, self._clock)
