"""What a job says of itself while it runs: its stages and the items it has done. Outside a job nothing happens."""

from __future__ import annotations

from jobmetrics.context import Execution, current_execution
from jobmetrics.guard import guarded
from jobmetrics.instruments.blocks import TimedBlock
from jobmetrics.recorder import Recorder

# An execution, whoever records it, and that recorder's clock at the beginning; None outside a job.
_Begun = tuple[Execution, Recorder, float] | None


class stage(TimedBlock[_Begun]):  # noqa: N801 - it is used as a function is
    """A named part of a job, timed however it ends: a context manager and a decorator, sync and async.

        with stage("download"): ...
        async with stage("download"): ...
        @stage("download")
        def download(): ...

    name: a value of the label `stage`: one of a few, never an id. Outside a job nothing is recorded. Make a new
    one for each block; as a decorator one serves all calls.
    """

    __slots__ = ("_name",)

    def __init__(self, name: str) -> None:
        super().__init__()
        self._name = name

    @guarded("stage start")
    def begin(self) -> _Begun:
        execution = current_execution()
        if execution is None:
            return None
        record: Recorder = execution.series.recorder
        return execution, record, record.clock()

    @guarded("stage end")
    def end(self, begun: _Begun) -> None:
        if begun is not None:
            execution, record, start = begun
            record.stage(execution, self._name, record.clock() - start)


@guarded("items")
def items(count: float = 1) -> None:
    """Add to the items that the running job has done. A negative number is dropped and counted.

    Outside a job nothing is recorded.
    """
    execution = current_execution()
    if execution is not None:
        record: Recorder = execution.series.recorder
        record.items(execution, count)
