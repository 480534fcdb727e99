"""`jobmetrics dump`: the exposition text, once."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from jobmetrics.cli import logs
from jobmetrics.cli.options import collector_options, reading, settings_from, warn_of_unknown_variables
from jobmetrics.cli.printable import printable


@click.command()
@reading
def dump(
    dir: str | None,  # noqa: A002 - the option is called so
    namespace: str | None,
    labels: tuple[str, ...],
    log_level: str | None,
    **brokers: Any,
) -> int:
    """Print the metrics once, as the exporter would serve them now."""
    from jobmetrics.exporter.app import build

    settings = settings_from(dir=dir, namespace=namespace, labels=labels, log_level=log_level)
    logs.configure(settings.log_level)
    warn_of_unknown_variables()
    options = collector_options(**brokers)
    app = build(settings, options)
    app.directory.require(missing_ok=False)
    app.collectors.start()
    try:
        app.collectors.wait(options.timeout)
        _print(app.text())
    finally:
        app.close()
    return 0


def _print(text: bytes) -> None:
    if sys.stdout.isatty():  # which obeys control characters in the names of jobs; a pipe gets them as they are
        text = "\n".join(map(printable, text.decode().split("\n"))).encode()
    try:
        sys.stdout.buffer.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # Whoever read it has had enough, as head does. Python would complain once more when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
