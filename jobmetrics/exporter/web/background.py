"""Run blocking functions in threads that delay neither the event loop nor the end of the process."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")


class Background:
    """Runs functions in a limited number of threads.

    The threads are daemon threads, unlike those of an executor, so that a thread that hangs on a file system does not
    keep the process alive.

    Args:
        threads: Functions of one event loop that run at once. Further ones wait.
    """

    def __init__(self, threads: int) -> None:
        self._threads = threads
        # A semaphore belongs to one event loop. A process may run several, one in a thread at a time.
        self._local = threading.local()

    def _free(self, loop: asyncio.AbstractEventLoop) -> asyncio.Semaphore:
        known: tuple[asyncio.AbstractEventLoop, asyncio.Semaphore] | None = getattr(self._local, "free", None)
        if known is None or known[0] is not loop:
            known = self._local.free = loop, asyncio.Semaphore(self._threads)
        return known[1]

    async def run(self, function: Callable[[], T]) -> T:
        """Run the function in a thread, and return its result or raise its exception."""
        loop = asyncio.get_running_loop()
        free = self._free(loop)
        await free.acquire()
        future: asyncio.Future[T] = loop.create_future()
        # A cancelled caller does not free its thread before the function has ended.
        future.add_done_callback(lambda _: free.release())
        thread = threading.Thread(target=_work, args=(function, future, loop), name="jobmetrics-answer", daemon=True)
        try:
            thread.start()
        except RuntimeError:  # the process may not have more threads
            future.cancel()
            raise
        return await asyncio.shield(future)


def _work(function: Callable[[], T], future: asyncio.Future[T], loop: asyncio.AbstractEventLoop) -> None:
    result: T | None = None
    error: BaseException | None = None
    try:
        result = function()
    except BaseException as failure:  # noqa: BLE001 - raised to the caller of run
        error = failure

    def resolve() -> None:
        if future.cancelled():
            return
        if error is None:
            future.set_result(result)  # type: ignore[arg-type]  # T itself may be None
        else:
            future.set_exception(error)

    with contextlib.suppress(RuntimeError):  # the loop has ended
        loop.call_soon_threadsafe(resolve)
