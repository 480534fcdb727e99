"""kombu's filesystem transport, with messages that appear whole.

kombu opens a message under its final name and then writes it, so a worker can take it while it is
empty; the worker's consumer then fails on it (kombu 5.7, transport/filesystem.py, Channel._put). Here
a message is written under another name and renamed.
"""

from __future__ import annotations

import time
import uuid
from pathlib import Path
from typing import Any

from kombu.transport import filesystem
from kombu.utils.json import dumps

TRANSPORT = f"{__name__}:Transport"
URL = "filesystem://"


class Channel(filesystem.Channel):
    """The stock channel but for the writing of a message."""

    def _put(self, queue: str, payload: dict[str, Any], **kwargs: Any) -> None:
        name = f"{round(time.monotonic() * 1000)}_{uuid.uuid4()}.{queue}.msg"
        folder = Path(self.data_folder_out)
        # A name that ends otherwise belongs to no queue, so nobody looks at it.
        draft = folder / f"{name}.draft"
        draft.write_text(dumps(payload), encoding="utf-8")
        draft.rename(folder / name)


class Transport(filesystem.Transport):
    """The transport that celery_app names."""

    Channel = Channel


def options(folder: Path) -> dict[str, Any]:
    """Transport options for messages under `folder`, which is created."""
    messages, control = folder / "messages", folder / "control"
    for part in (messages, control):
        part.mkdir(parents=True, exist_ok=True)
    return {
        "data_folder_in": str(messages),
        "data_folder_out": str(messages),
        "control_folder": str(control),
        "polling_interval": 0.1,
    }


def waiting(folder: Path, queue: str) -> int:
    """Messages that nobody has taken yet."""
    return sum(1 for _ in (folder / "messages").glob(f"*.{queue}.msg"))
