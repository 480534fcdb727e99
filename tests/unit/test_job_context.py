from __future__ import annotations

import asyncio
import contextvars
import os
import re
import threading
from collections.abc import Iterator

import pytest

from jobmetrics import CurrentJob, current_job, timed_job
from jobmetrics.testing import temporary_registry


@pytest.fixture(autouse=True)
def registry() -> Iterator[None]:
    with temporary_registry():
        yield


def type_now() -> str | None:
    job = current_job()
    return None if job is None else job.job_type


def test_outside_a_job_the_current_job_is_none() -> None:
    assert current_job() is None


def test_the_current_job_is_the_running_one() -> None:
    @timed_job(name="imports", target=2.0)
    def run() -> CurrentJob | None:
        return current_job()

    one, other = run(), run()
    assert one is not None
    assert other is not None
    assert (one.system, one.job_type, one.queue_name, one.target) == ("python", "imports", "", 2.0)
    assert re.fullmatch("[0-9a-f]{16}", one.id)
    assert one.id != other.id
    assert one.started_at <= other.started_at


@timed_job(name="imports")
def job_type_seen_by(ask: str) -> str | None:
    """The job type that a helper of the job sees."""
    said: list[str | None] = []
    if ask == "thread":
        thread = threading.Thread(target=lambda: said.append(type_now()))
        thread.start()
        thread.join()
    elif ask == "thread with a copy":
        thread = threading.Thread(target=contextvars.copy_context().run, args=(lambda: said.append(type_now()),))
        thread.start()
        thread.join()
    elif ask == "asyncio task":
        asyncio.run(_ask_in_task(said))
    elif ask == "to_thread":
        said.append(asyncio.run(asyncio.to_thread(type_now)))
    else:
        said.append(_ask_in_child())
    return said[0]


async def _ask_in_task(said: list[str | None]) -> None:
    async def ask() -> None:
        said.append(type_now())

    await asyncio.create_task(ask())


def _ask_in_child() -> str | None:
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write_end, str(type_now()).encode())
        os._exit(0)
    os.waitpid(pid, 0)
    said = os.read(read_end, 100).decode()
    os.close(read_end)
    os.close(write_end)
    return said


@pytest.mark.parametrize("ask", ["thread with a copy", "asyncio task", "to_thread", "forked child"])
def test_context_carries_over(ask: str) -> None:
    assert job_type_seen_by(ask) == "imports"


def test_a_bare_thread_begins_with_pythons_default_context() -> None:
    """Empty up to 3.13; from 3.14 on a copy is inherited in builds without the GIL, or if requested."""
    inherited: contextvars.ContextVar[bool] = contextvars.ContextVar("inherited", default=False)
    inherited.set(True)
    seen: list[bool] = []
    thread = threading.Thread(target=lambda: seen.append(inherited.get()))
    thread.start()
    thread.join()
    assert job_type_seen_by("thread") == ("imports" if seen[0] else None)


def test_a_job_in_a_separate_thread_is_a_separate_job() -> None:
    said: list[str | None] = []

    @timed_job(name="inner")
    def inner() -> None:
        said.append(type_now())

    @timed_job(name="outer")
    def outer() -> None:
        thread = threading.Thread(target=contextvars.Context().run, args=(inner,))
        thread.start()
        thread.join()
        said.append(type_now())

    outer()
    assert said == ["inner", "outer"]


def test_a_task_that_outlives_its_job_has_no_current_job() -> None:
    said: list[str | None] = []

    async def later(event: asyncio.Event) -> None:
        await event.wait()
        said.append(type_now())

    @timed_job(name="imports")
    async def run(event: asyncio.Event) -> asyncio.Task[None]:
        return asyncio.create_task(later(event))

    async def main() -> None:
        event = asyncio.Event()
        task = await run(event)
        event.set()
        await task

    asyncio.run(main())
    assert said == [None]
