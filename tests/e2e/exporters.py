"""The exporter and the other commands as real processes, and their output."""

from __future__ import annotations

import base64
import contextlib
import gzip
import http.client
import importlib
import os
import re
import signal
import ssl
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text

from jobmetrics.cli.main import main
from tests.support import servers
from tests.support.readings import until

COMMAND = [sys.executable, "-m", "jobmetrics"]
LIMIT = 60.0  # seconds, a hang guard
OPENMETRICS = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5"

Labels = frozenset[tuple[str, str]]

# Replaces a worker: two ended executions and one that runs until standard input is closed.
RECORDS = """
import sys, time
from jobmetrics import settings
from jobmetrics.families import JOBS, JOBS_ACTIVE, JOBS_DURATION
from jobmetrics.instruments import BoundCounter, BoundHistogram
from jobmetrics.registry.cells import BoundSeries
from jobmetrics.registry.write.writer import Writer

writer = Writer(settings.load(dir=sys.argv[1]))
job = ("celery", "app.resize", "mail")
for seconds in (0.02, 4.0):
    BoundCounter(writer, JOBS, (*job, "success")).inc()
    BoundHistogram(writer, JOBS_DURATION, job).observe(seconds)
assert writer.begin(BoundSeries(writer, JOBS_ACTIVE, job), 7, float(sys.argv[2]))
print("recorded", flush=True)
sys.stdin.read()
"""
JOB = {"system": "celery", "job_type": "app.resize", "queue_name": "mail"}


class Exposed:
    """The result of one scrape."""

    def __init__(self, text: str, *, openmetrics: bool = False) -> None:
        parse = parse_openmetrics if openmetrics else parse_text
        self.types = {}
        self.values: dict[tuple[str, Labels], float] = {}
        for family in parse(text):
            self.types[family.name] = family.type
            for sample in family.samples:
                key = (sample.name, frozenset(sample.labels.items()))
                assert key not in self.values, f"{key} appears twice"
                self.values[key] = sample.value

    def __call__(self, name: str, **labels: str) -> float | None:
        """A sample's value; None if absent."""
        return self.values.get((name, frozenset(labels.items())))

    def names(self) -> set[str]:
        return {name for name, _ in self.values}


class Exporter:
    """A running exporter."""

    def __init__(self, process: subprocess.Popen[str], log: Path) -> None:
        self.process = process
        self._log = log
        self.url = ""
        self.tls: ssl.SSLContext | None = None
        self.credentials: tuple[str, str] | None = None
        until(self._serves, "the exporter to serve", LIMIT)

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def address(self) -> tuple[str, int]:
        place = urlsplit(self.url)
        assert place.hostname is not None
        assert place.port is not None
        return place.hostname, place.port

    def _serves(self) -> bool:
        assert self.process.poll() is None, self.log
        found = re.search(r"serving (https?://\S+)/metrics from (\S+)$", self.log, re.MULTILINE)
        self.url = found[1] if found else ""
        return found is not None

    def connect(self) -> http.client.HTTPConnection:
        if self.tls is not None:
            return http.client.HTTPSConnection(*self.address, timeout=LIMIT, context=self.tls)
        return http.client.HTTPConnection(*self.address, timeout=LIMIT)

    def ask(
        self, path: str, method: str = "GET", accept: str = "", encoding: str = ""
    ) -> tuple[int, dict[str, str], str]:
        with contextlib.closing(self.connect()) as connection:
            headers = {"Accept": accept, "Accept-Encoding": encoding}
            if self.credentials is not None:
                headers["Authorization"] = "Basic " + base64.b64encode(":".join(self.credentials).encode()).decode()
            connection.request(method, path, headers={name: value for name, value in headers.items() if value})
            answer = connection.getresponse()
            body = answer.read()
            if answer.getheader("Content-Encoding") == "gzip" and body:
                body = gzip.decompress(body)
            return answer.status, {name.title(): value for name, value in answer.getheaders()}, body.decode()

    def scrape(self) -> Exposed:
        status, headers, text = self.ask("/metrics")
        assert (status, headers["Content-Type"].split(";")[0]) == (200, "text/plain")
        return Exposed(text)

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, float]:
        """The exit code, and the seconds until the exit."""
        start = time.monotonic()
        self.process.send_signal(number)
        code = self.process.wait(LIMIT)
        return code, time.monotonic() - start


@contextlib.contextmanager
def running(
    directory: Path,
    log: Path,
    *options: str,
    listen: str = "127.0.0.1:0",
    under: Sequence[str] = (),
    **variables: str,
) -> Iterator[Exporter]:
    """under: a command that runs the exporter."""
    command = [*under, *COMMAND, "exporter", "--listen", listen, "--dir", str(directory), "--refresh", "0.1", *options]
    with log.open("w") as output:
        process = subprocess.Popen(
            command, env={**os.environ, **variables}, stdout=output, stderr=subprocess.STDOUT, text=True
        )
    try:
        yield Exporter(process, log)
    finally:
        process.kill()
        process.wait()


@contextlib.contextmanager
def recording(
    directory: Path, cwd: Path | None = None, started: float = 1700000000.0
) -> Iterator[subprocess.Popen[str]]:
    """A process that has recorded, and runs one execution. started: its start in epoch seconds."""
    command = [sys.executable, "-c", RECORDS, str(directory), repr(started)]
    with subprocess.Popen(command, cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "recorded\n"
            yield process
        finally:
            process.kill()


def run(
    *arguments: str, limited: bool = False, variables: Mapping[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end. limited: without root's permission to read every file."""
    command = [*COMMAND, *arguments]
    if limited and os.geteuid() == 0:
        capabilities = "-dac_override,-dac_read_search"
        command = [servers.program("setpriv"), f"--bounding-set={capabilities}", f"--inh-caps={capabilities}", *command]
    return subprocess.run(
        command,
        env={**os.environ, **(variables or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=LIMIT,
        check=False,
    )


def run_inside(*arguments: str, variables: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Like `run`, in a fork of this process: faster for commands that exit soon."""
    for module in ("cli.group", "cli.exporter", "exporter.web.server", "celery.queue_collector", "rq.queue_collector"):
        importlib.import_module(f"jobmetrics.{module}")  # here once, not in each fork
    with tempfile.TemporaryFile("w+") as stdout, tempfile.TemporaryFile("w+") as stderr:
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.environ.update(variables or {})
                sys.argv = ["jobmetrics", *arguments]
                sys.stdout, sys.stderr = stdout, stderr
                main()
            except SystemExit as left:
                status = left.code if isinstance(left.code, int) else 1
            except BaseException:  # noqa: BLE001 - nothing may come back into pytest
                traceback.print_exc()
            finally:
                stdout.flush()
                stderr.flush()
                os._exit(status)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        for file in (stdout, stderr):
            file.seek(0)
        return subprocess.CompletedProcess(list(arguments), code, stdout.read(), stderr.read())


def complaint(done: subprocess.CompletedProcess[str], code: int = 2) -> str:
    """The one clear line of a command that failed. Its exit code: 2 for bad input, 1 for other failures."""
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert line.startswith("jobmetrics: ")
    return line
