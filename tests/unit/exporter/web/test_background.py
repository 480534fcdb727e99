"""Functions that run in threads for an event loop."""

from __future__ import annotations

import asyncio
import threading

import pytest

from jobmetrics.exporter.web.background import Background

LIMIT = 5.0  # a hang guard


async def _run(background: Background, count: int) -> list[int]:
    answers = asyncio.gather(*(background.run(lambda: 1) for _ in range(count)))
    return list(await asyncio.wait_for(answers, LIMIT))


def test_event_loops_of_one_process_do_not_share_threads() -> None:
    background = Background(1)
    for _ in range(2):
        assert asyncio.run(_run(background, 3)) == [1, 1, 1]


def test_a_loop_that_ends_during_a_function_keeps_no_thread_from_the_next_loop() -> None:
    background, release = Background(1), threading.Event()

    async def leave() -> None:
        task = asyncio.create_task(background.run(release.wait))
        await asyncio.sleep(0)
        task.cancel()

    asyncio.run(leave())
    try:
        assert asyncio.run(_run(background, 1)) == [1]
    finally:
        release.set()


def test_a_thread_that_cannot_start_is_not_missing_later(monkeypatch: pytest.MonkeyPatch) -> None:
    background = Background(1)

    def no_thread(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    async def ask() -> list[int]:
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", no_thread)
            with pytest.raises(RuntimeError, match="can't start"):
                await background.run(lambda: 1)
        return await _run(background, 2)

    assert asyncio.run(ask()) == [1, 1]
