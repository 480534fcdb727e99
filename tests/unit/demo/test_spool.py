from __future__ import annotations

from pathlib import Path

import pytest
from kombu import Connection, Queue

from jobmetrics.demo import spool


def test_messages_arrive_and_nothing_else_lies_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    queue = Queue("files", routing_key="files")
    with Connection(spool.URL, transport=spool.TRANSPORT, transport_options=spool.options(tmp_path)) as connection:
        with connection.Producer() as producer:
            producer.publish({"n": 1}, routing_key="files", declare=[queue], serializer="json")
            producer.publish({"n": 2}, routing_key="files", declare=[queue], serializer="json")
        assert {path.suffix for path in (tmp_path / "messages").iterdir()} == {".msg"}
        received = []
        simple = connection.SimpleQueue(queue)
        for _ in range(2):
            message = simple.get(block=False)
            received.append(message.payload["n"])
            message.ack()
        simple.close()
    assert sorted(received) == [1, 2]
    assert list((tmp_path / "messages").iterdir()) == []
