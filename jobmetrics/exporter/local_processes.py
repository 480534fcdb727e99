"""Processes of this host that a command looks for: the exporter of the same directory, and those just started."""

from __future__ import annotations

import contextlib
import functools
import time
import urllib.error
from collections.abc import Mapping, Sequence
from http.client import HTTPException
from pathlib import PurePath

import psutil
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from jobmetrics.exporter import client
from jobmetrics.exporter.web.pages import DIRECTORY_HEADER, fingerprint
from jobmetrics.families import BUILT_IN, COLLECTED
from jobmetrics.integration import find_systems
from jobmetrics.settings import Settings

EXPORTER = "exporter"
STARTING = 60.0  # seconds after a process's start in which it may not record yet
_TIMEOUT = 5.0  # seconds

# The exporter listens on an address of this machine, which no proxy serves.
read_local = functools.partial(client.get, seconds=_TIMEOUT, through_proxy=False)


def local_url(listen: str) -> str:
    """Return the URL at which this host reaches a server that listens at HOST:PORT."""
    host, _, port = listen.rpartition(":")
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)  # noqa: S104 - read only
    return f"http://{host}:{port}/"


def collected(settings: Settings) -> tuple[list[Metric], str]:
    """Return what the exporter of this directory has read from brokers, for a command without broker options.

    Returns:
        The metrics, and the reason why there are none.
    """
    url = f"{local_url(settings.listen)}metrics"
    try:
        headers, text = read_local(url)
    except urllib.error.HTTPError as error:
        error.close()
        return [], f"the server at {url} answers {error.code} {error.reason}"
    except ConnectionError:
        return [], f"the server at {url} may use TLS"
    except (OSError, HTTPException, ValueError):
        return [], f"no exporter answers at {url}"
    if headers.get(DIRECTORY_HEADER) != fingerprint(settings.dir):
        return [], f"the server at {url} is not an exporter of {settings.dir}"
    names = tuple(settings.metric_prefix + family.name for family in BUILT_IN if family.source == COLLECTED)
    try:
        # The lines of the directory's metrics are many, and are not needed.
        found = list(
            text_string_to_metric_families("".join(f"{line}\n" for line in text.splitlines() if line.startswith(names)))
        )
    except ValueError:
        return [], f"the server at {url} does not serve metrics in Prometheus' text format"
    return found, "" if found else f"the exporter at {url} reads no broker"


def starting(settings: Settings) -> dict[str, float]:
    """Find workers and exporters of this host that have just been started.

    Those that were given another registry directory or address do not count. Nor does a process that another one of the
    same program has started: pool processes and work-horses are always young.

    Returns:
        The seconds since the start, by job system; the exporter's name is EXPORTER.
    """
    programs = {system.package: (system.name, "worker") for system in find_systems().systems if system.package}
    programs["jobmetrics"] = (EXPORTER, EXPORTER)
    started: dict[int, tuple[str, int, float]] = {}
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            name = _started(words := process.cmdline(), programs)
            ours = settings.listen in words or "--listen" not in words
            if name and ours and process.environ().get("JOBMETRICS_DIR", settings.dir) == settings.dir:
                started[process.pid] = (name, process.ppid(), time.time() - process.create_time())
    found: dict[str, float] = {}
    for name, parent, seconds in started.values():
        if parent not in started and seconds < STARTING:
            found[name] = min(seconds, found.get(name, seconds))
    return found


def _started(words: Sequence[str], programs: Mapping[str, tuple[str, str]]) -> str:
    """Return which job system's worker, or whether an exporter, these words start. The interpreter comes first."""
    for word in words[:3]:
        name, command = programs.get(PurePath(word).name, ("", ""))
        if name and any(each.startswith(command) for each in words):
            return name
    return ""
