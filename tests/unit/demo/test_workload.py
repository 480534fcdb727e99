from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from demo.ledger import Run

ROOT = Path(__file__).parents[3]
CODE = """
import json
from kombu import Connection, Queue
from demo.workload import RUN, app, celery_settings

settings = celery_settings(RUN)
queue = Queue("files", routing_key="files")
options = {"transport": settings["broker_transport"], "transport_options": settings["broker_transport_options"]}
with Connection(settings["broker_url"], **options) as connection:
    with connection.Producer() as producer:
        for number in (1, 2):
            producer.publish({"n": number}, routing_key="files", declare=[queue], serializer="json")
    written = sorted(path.suffix for path in (RUN.home / "messages").iterdir())
    received = []
    simple = connection.SimpleQueue(queue)
    for _ in range(2):
        message = simple.get(block=False)
        received.append(message.payload["n"])
        message.ack()
    simple.close()
left = [path.name for path in (RUN.home / "messages").iterdir()]
print(json.dumps([written, sorted(received), left, app.conf.broker_url]))
"""


def test_without_redis_messages_appear_complete_in_files(tmp_path: Path) -> None:
    Run(tmp_path, "7f", None, "demo-celery", "demo-rq").save()
    places = {"DEMO_HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join([str(ROOT / "examples"), str(ROOT)])}
    done = subprocess.run(
        [sys.executable, "-c", CODE],
        cwd=tmp_path, env={**os.environ, **places}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [[".msg", ".msg"], [1, 2], [], "filesystem://"]
