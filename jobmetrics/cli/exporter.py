"""`jobmetrics exporter`: serves the metrics until it is told to end."""

from __future__ import annotations

import logging
import sys
from functools import partial
from typing import Any

import click

from jobmetrics.cli import logs
from jobmetrics.cli.options import (
    LOG_FORMAT_VARIABLE,
    REFRESH_VARIABLE,
    WEB_CONFIG_VARIABLE,
    collector_options,
    hide,
    hide_after_seconds,
    reading,
    settings_from,
    warn_of_unknown_variables,
)

logger = logging.getLogger("jobmetrics")


@click.command()
@click.option(
    "--listen", metavar="HOST:PORT", help="Address to serve on; port 0 takes a free one.  [default: 127.0.0.1:9909]"
)
@click.option(
    "--web-config", metavar="FILE", envvar=WEB_CONFIG_VARIABLE, show_envvar=True,
    help="TLS and passwords, in the format of Prometheus' exporter-toolkit.",
)  # fmt: skip
@reading
@hide
@click.option(
    "--refresh", type=click.FloatRange(0.05, 3600), default=5.0, metavar="SECONDS",
    envvar=REFRESH_VARIABLE, show_envvar=True, show_default=True, help="How often the brokers are asked.",
)  # fmt: skip
@click.option(
    "--log-format", type=click.Choice(logs.FORMATS), default=logs.HUMAN,
    envvar=LOG_FORMAT_VARIABLE, show_envvar=True, show_default=True, help="How log lines are written.",
)  # fmt: skip
def exporter(
    listen: str | None,
    web_config: str | None,
    dir: str | None,  # noqa: A002 - the option is called so
    namespace: str | None,
    labels: tuple[str, ...],
    log_level: str | None,
    hide_after: float | None,
    refresh: float,
    log_format: str,
    **brokers: Any,
) -> int:
    """Serve the metrics over HTTP.

    It may start before any worker and before the broker: what cannot be read is absent,
    and jobmetrics_directory_up and jobmetrics_collector_up say so.
    SIGTERM and Ctrl-C end it.
    """
    from jobmetrics.exporter import access, listening, server, systemd, webconfig
    from jobmetrics.exporter.app import build
    from jobmetrics.exporter.asgi import asgi_app, in_threads
    from jobmetrics.exporter.sparingly import Sparingly

    server.Stop()
    settings = settings_from(dir=dir, listen=listen, namespace=namespace, labels=labels, log_level=log_level)
    logs.configure(settings.log_level, log_format)
    warn_of_unknown_variables()
    web = webconfig.load(web_config) if web_config else webconfig.WebConfig()
    tls = allow = None
    if web.tls is not None:
        from jobmetrics.exporter.tls import TlsContext, allows

        tls, allow = TlsContext(web.tls, Sparingly()), partial(allows, web.tls)
    app = build(settings, collector_options(**brokers), refresh=refresh, hide_after=hide_after_seconds(hide_after))
    app.directory.require(missing_ok=True)
    pages = asgi_app(in_threads(app.pages, app.pages.takes_time))
    if web.users is not None:
        from jobmetrics.exporter.passwords import Passwords

        pages = access.with_passwords(pages, Passwords(web.users))
    sockets = listening.listen(settings.listen)
    app.collectors.start()
    url = listening.url(sockets[0], "http" if tls is None else "https")
    try:
        server.serve(
            access.with_headers(pages, web.headers),
            sockets,
            tls=tls,
            allow=allow,
            ready=partial(_ready, f"serving {url}/metrics from {settings.dir}", log_format),
            ended=partial(systemd.notify, "STOPPING=1"),
        )
    finally:
        app.close()
    return 0


def _ready(message: str, log_format: str) -> None:
    """Say where it serves, whatever the log level, and tell systemd."""
    from jobmetrics.exporter import systemd

    if log_format == logs.JSON:
        record = logger.makeRecord(logger.name, logging.INFO, "", 0, message, (), None)
        message = logs.JsonFormatter().format(record)
    else:
        message = f"jobmetrics exporter: {message}"
    sys.stderr.write(f"{message}\n")  # at once: print writes the line's end apart, and collectors log meanwhile
    sys.stderr.flush()
    systemd.notify("READY=1")
