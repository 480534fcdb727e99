"""A Redis result backend that fails to store some results."""

from __future__ import annotations

from typing import Any

from celery.backends.redis import RedisBackend


class Results(RedisBackend):
    def mark_as_done(self, task_id: str, result: Any, request: Any = None, *args: Any, **options: Any) -> Any:
        if request is not None and request.task.endswith(".store_fails"):
            raise RuntimeError("no result is stored")
        return super().mark_as_done(task_id, result, request, *args, **options)
