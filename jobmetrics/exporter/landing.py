"""The page at /: what this is, where the rest is, and how things stand."""

from __future__ import annotations

import html
from collections.abc import Sequence

from jobmetrics.exporter.collectors import CollectorState
from jobmetrics.exporter.registry_reader import DirectoryReading

_PAGE = """<!doctype html>
<html lang="en">
<head><meta charset="utf-8"><title>jobmetrics</title></head>
<body>
<h1>jobmetrics {version}</h1>
<p>Metrics of background jobs, from <code>{directory}</code>: {state}</p>
<ul>
<li><a href="metrics">metrics</a></li>
<li><a href="healthz">healthz</a>: this process answers</li>
<li><a href="readyz">readyz</a>: the registry directory can be read</li>
</ul>
<h2>Queue collectors</h2>
{collectors}
</body>
</html>
"""


def landing(version: str, path: str, reading: DirectoryReading, states: Sequence[CollectorState]) -> bytes:
    """The page, as HTML in UTF-8."""
    page = _PAGE.format(
        version=html.escape(version),
        directory=html.escape(path),
        state=html.escape(_slots(reading)),
        collectors=_collectors(states),
    )
    return page.encode("utf-8", "backslashreplace")


def _slots(reading: DirectoryReading) -> str:
    found = reading.snapshot
    if found is None:
        return f"not readable, {reading.reason}"
    return f"{found.live} live slots, {found.free} free, {found.damaged} damaged; {found.series} series"


def _collectors(states: Sequence[CollectorState]) -> str:
    if not states:
        return "<p>None: no broker was named.</p>"
    rows = "".join(
        f"<tr><td>{html.escape(state.name)}</td><td>{html.escape(state.broker)}</td>"
        f"<td>{html.escape(_told(state))}</td></tr>\n"
        for state in states
    )
    return f"<table>\n<tr><th>collector</th><th>broker</th><th>last reading</th></tr>\n{rows}</table>"


def _told(state: CollectorState) -> str:
    if state.up is None:
        return "not yet"
    if state.error is not None:
        return state.error
    took = "" if state.duration is None else f", in {state.duration:.3f} s"
    return f"{len(state.readings)} values{took}"
