"""What the demo's processes have to know of each other: one file in their common directory.

A file of mode 0600 rather than arguments or environment, because the Redis URL may hold a password.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from jobmetrics.demo.redis_url import for_celery

HOME_VARIABLE = "JOBMETRICS_DEMO_HOME"
_FILE = "demo.json"


@dataclass(frozen=True)
class DemoConfig:
    """One run of the demo. `redis_url` is None when Celery runs alone over files."""

    home: Path
    run: str
    redis_url: str | None
    celery_queue: str
    rq_queue: str

    @property
    def celery_url(self) -> str:
        """The Redis of `redis_url` as Celery wants it named."""
        return for_celery(self.redis_url or "")

    @property
    def systems(self) -> tuple[str, ...]:
        """The job systems that take part."""
        return ("celery",) if self.redis_url is None else ("celery", "rq")

    @property
    def queues(self) -> dict[str, str]:
        """The queue of each system that takes part."""
        names = {"celery": self.celery_queue, "rq": self.rq_queue}
        return {system: names[system] for system in self.systems}

    @property
    def registry(self) -> Path:
        """JOBMETRICS_DIR of every process."""
        return self.home / "registry"

    @property
    def sent(self) -> Path:
        """What the producer sent, a line a job."""
        return self.home / "sent.jsonl"

    @property
    def ledger(self) -> Path:
        """What the jobs wrote about themselves, a line an execution."""
        return self.home / "ledger.jsonl"

    @property
    def shop(self) -> Path:
        """The files that the jobs work on."""
        return self.home / "shop"

    @property
    def spool(self) -> Path:
        """The messages of the filesystem transport."""
        return self.home / "spool"

    @property
    def logs(self) -> Path:
        """The output of the processes, a file each."""
        return self.home / "logs"

    @property
    def celery_ready(self) -> Path:
        """Exists once the Celery worker listens."""
        return self.home / "celery.ready"

    @property
    def rq_worker(self) -> str:
        """The RQ worker's name; it holds the run's id so that its keys can be told from others'."""
        return f"worker-{self.run}"


def save(config: DemoConfig) -> None:
    """Write the run down for its processes."""
    values = {**asdict(config), "home": str(config.home)}
    descriptor = os.open(config.home / _FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        json.dump(values, file)


def load(environ: Mapping[str, str] | None = None) -> DemoConfig:
    """Read the run that this process belongs to; KeyError outside of a demo."""
    home = Path((os.environ if environ is None else environ)[HOME_VARIABLE])
    values = json.loads((home / _FILE).read_text(encoding="utf-8"))
    return DemoConfig(**{**values, "home": home})
