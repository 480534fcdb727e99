"""`jobmetrics dump`: print the metrics once."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from jobmetrics.cli import logs
from jobmetrics.cli.logs import printable
from jobmetrics.cli.options import collector_options, reading, settings_from, warn_of_unknown_variables


@click.command()
@reading
def dump(
    dir: str | None,  # noqa: A002 - the option's name
    namespace: str | None,
    labels: tuple[str, ...],
    log_level: str | None,
    **brokers: Any,
) -> int:
    """Print the metrics once, as the exporter would serve them."""
    from jobmetrics.exporter.app import reading

    settings = settings_from(dir=dir, namespace=namespace, labels=labels, log_level=log_level)
    logs.configure(settings.log_level)
    warn_of_unknown_variables()
    with reading(settings, collector_options(**brokers)) as app:
        _print(app.text())
    return 0


def _print(text: bytes) -> None:
    if sys.stdout.isatty():  # names of jobs may hold control characters; a pipe gets them unchanged
        text = "\n".join(map(printable, text.decode().split("\n"))).encode()
    try:
        sys.stdout.buffer.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader has closed the pipe, as head does. Without this, Python would report it again when it flushes at
        # exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
