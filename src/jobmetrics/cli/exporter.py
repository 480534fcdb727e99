"""`jobmetrics exporter`: serves the metrics until it is told to end."""

from __future__ import annotations

from typing import Any

import click

from jobmetrics.cli import logs
from jobmetrics.cli.options import REFRESH_VARIABLE, collector_options, reading, settings_from


@click.command()
@click.option(
    "--listen", metavar="HOST:PORT", help="Address to serve on; port 0 takes a free one.  [default: 127.0.0.1:9909]"
)
@reading
@click.option(
    "--refresh", type=click.FloatRange(0.05, 3600), default=5.0, metavar="SECONDS",
    envvar=REFRESH_VARIABLE, show_envvar=True, show_default=True, help="How often the brokers are asked.",
)  # fmt: skip
def exporter(
    listen: str | None,
    dir: str | None,  # noqa: A002 - the option is called so
    namespace: str | None,
    labels: tuple[str, ...],
    log_level: str | None,
    refresh: float,
    **brokers: Any,
) -> int:
    """Serve the metrics over HTTP.

    It may start before any worker and before the broker: what cannot be read is absent,
    and jobmetrics_directory_up and jobmetrics_collector_up say so.
    SIGTERM and Ctrl-C end it.
    """
    from jobmetrics.exporter import listening, server
    from jobmetrics.exporter.app import build

    stop = server.Stop()
    settings = settings_from(dir=dir, listen=listen, namespace=namespace, labels=labels, log_level=log_level)
    logs.configure(settings.log_level)
    app = build(settings, collector_options(**brokers), refresh=refresh)
    app.directory.require(missing_ok=True)
    sockets = listening.listen(settings.listen)
    app.collectors.start()
    ready = f"jobmetrics exporter: serving {listening.url(sockets[0])}/metrics from {settings.dir}"
    try:
        server.serve(app.pages, sockets, stop, ready=ready)
    finally:
        app.close()
    return 0
