"""Functions that take time, called from an event loop without holding it up, or the end of the process."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Background:
    """Runs functions in threads, so many at once.

    The threads are daemons, unlike those of an executor: one that hangs, on a file system that does not
    answer, say, must not keep the process from ending.
    """

    def __init__(self, threads: int) -> None:
        self._free = asyncio.Semaphore(threads)

    async def run(self, function: Callable[[], T]) -> T:
        """What the function returns, or raises, in its own time."""
        await self._free.acquire()
        loop = asyncio.get_running_loop()
        future: asyncio.Future[T] = loop.create_future()
        # Who goes away while the thread is at work does not make room for another one.
        future.add_done_callback(lambda _: self._free.release())
        threading.Thread(target=_work, args=(function, future, loop), name="jobmetrics-answer", daemon=True).start()
        return await asyncio.shield(future)


def _work(function: Callable[[], T], future: asyncio.Future[T], loop: asyncio.AbstractEventLoop) -> None:
    result: T | None = None
    error: BaseException | None = None
    try:
        result = function()
    except BaseException as failure:  # noqa: BLE001 - told to whoever waits
        error = failure

    def tell() -> None:
        if future.cancelled():
            return
        if error is None:
            future.set_result(result)  # type: ignore[arg-type]  # T itself may be None
        else:
            future.set_exception(error)

    with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
        loop.call_soon_threadsafe(tell)
