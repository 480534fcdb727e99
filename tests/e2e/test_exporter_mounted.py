"""The metrics served by other web processes: mounted in a real Starlette application and beside a real Django."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.exporters import JOB, LIMIT, Exposed, recording, run

STARLETTE = """
import socket, sys
import uvicorn
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route
from jobmetrics.exporter import make_asgi_app

async def home(request):
    return PlainTextResponse("home")

app = Starlette(routes=[Route("/", home), Mount("/metrics", make_asgi_app(dir=sys.argv[1], namespace="acme"))])
sock = socket.create_server(("127.0.0.1", 0))
print(sock.getsockname()[1], flush=True)
uvicorn.Server(uvicorn.Config(app, log_level="error")).run([sock])
"""

DJANGO = """
import socket, sys
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer
import django
from django.conf import settings
from django.core.wsgi import get_wsgi_application
from django.http import HttpResponse
from django.urls import path
from jobmetrics.exporter import make_wsgi_app

urlpatterns = [path("", lambda request: HttpResponse("home"))]
settings.configure(ROOT_URLCONF=__name__, ALLOWED_HOSTS=["127.0.0.1"])
pages, metrics = get_wsgi_application(), make_wsgi_app(dir=sys.argv[1], namespace="acme")

def application(environ, start_response):
    return (metrics if environ["PATH_INFO"] == "/metrics" else pages)(environ, start_response)

server = WSGIServer(("127.0.0.1", 0), WSGIRequestHandler)
server.set_app(application)
print(server.server_port, flush=True)
server.serve_forever()
"""


@contextlib.contextmanager
def hosting(code: str, directory: Path) -> Iterator[str]:
    with subprocess.Popen(
        [sys.executable, "-c", code, str(directory)],
        env={**os.environ, "PYTHONWARNINGS": "error::ResourceWarning"},
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        try:
            assert process.stdout is not None
            yield f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            process.kill()


def get(url: str, **headers: str) -> tuple[str, str]:
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=LIMIT) as response:
        return response.headers["Content-Type"], response.read().decode()


@pytest.mark.parametrize(("code", "mounted"), [(STARLETTE, "/metrics/"), (DJANGO, "/metrics")])
def test_the_metrics_are_served_beside_the_pages_of_another_application(
    code: str, mounted: str, registry_dir: Path
) -> None:
    with hosting(code, registry_dir) as url, recording(registry_dir):
        assert get(f"{url}/")[1] == "home"
        kind, text = get(url + mounted)
        assert kind == "text/plain; version=0.0.4; charset=utf-8"
        assert Exposed(text)("acme_jobs_total", **JOB, status="success") == 2
        kind, text = get(url + mounted, Accept="application/openmetrics-text")
        assert kind == "application/openmetrics-text; version=1.0.0; charset=utf-8"
        assert Exposed(text, openmetrics=True)("acme_jobs_active", **JOB) == 1


@pytest.mark.parametrize("code", [STARLETTE, DJANGO])
def test_check_recognises_a_mounted_exporter(code: str, registry_dir: Path) -> None:
    with hosting(code, registry_dir) as url, recording(registry_dir, started=time.time()):
        done = run("check", "--dir", str(registry_dir), "--listen", url.removeprefix("http://"))
    assert (done.returncode, done.stderr) == (0, "")
    assert f"ok      the exporter at {url}/metrics reads this directory" in done.stdout


def test_check_recognises_a_mounted_exporter_of_another_directory(registry_dir: Path, tmp_path: Path) -> None:
    with hosting(DJANGO, tmp_path / "another") as url, recording(registry_dir):
        done = run("check", "--dir", str(registry_dir), "--listen", url.removeprefix("http://"))
    assert done.returncode == 1
    assert f"PROBLEM the server at {url}/metrics does not read {registry_dir}; give both the same" in done.stdout


def test_check_recognises_a_web_process_without_an_exporter(registry_dir: Path) -> None:
    bare = DJANGO.replace('if environ["PATH_INFO"] == "/metrics"', "if False")
    with hosting(bare, registry_dir) as url, recording(registry_dir):
        done = run("check", "--dir", str(registry_dir), "--listen", url.removeprefix("http://"))
    assert done.returncode == 1
    assert f"PROBLEM the server at {url}/ is not an exporter and has none at /metrics; start" in done.stdout
