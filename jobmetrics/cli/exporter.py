"""`jobmetrics exporter`: serve the metrics until a signal ends it."""

from __future__ import annotations

import logging
import os
import socket
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

NOTIFY_VARIABLE = "NOTIFY_SOCKET"


@click.command()
@click.option(
    "--listen", metavar="HOST:PORT", help="Address to serve on; port 0 takes a free port.  [default: 127.0.0.1:9909]"
)
@click.option(
    "--web-config", metavar="FILE", envvar=WEB_CONFIG_VARIABLE, show_envvar=True,
    help="TLS and passwords, in the format of Prometheus' exporter-toolkit.",
)  # fmt: skip
@reading
@hide
@click.option(
    "--refresh", type=click.FloatRange(0.05, 3600), default=5.0, metavar="SECONDS",
    envvar=REFRESH_VARIABLE, show_envvar=True, show_default=True, help="Time between two readings of a broker.",
)  # fmt: skip
@click.option(
    "--log-format", type=click.Choice(logs.FORMATS), default=logs.HUMAN,
    envvar=LOG_FORMAT_VARIABLE, show_envvar=True, show_default=True, help="Format of log lines.",
)  # fmt: skip
def exporter(
    listen: str | None,
    web_config: str | None,
    dir: str | None,  # noqa: A002 - the option's name
    namespace: str | None,
    labels: tuple[str, ...],
    log_level: str | None,
    hide_after: float | None,
    refresh: float,
    log_format: str,
    **brokers: Any,
) -> int:
    """Serve the metrics over HTTP.

    It may start before any worker and before the broker. What cannot be read is absent,
    and jobmetrics_directory_up or jobmetrics_collector_up is 0.
    SIGTERM and Ctrl-C end it.
    """
    from starlette.middleware import Middleware

    from jobmetrics.exporter.app import build
    from jobmetrics.exporter.web import apps, server
    from jobmetrics.log_throttle import ThrottledLog

    server.Stop()
    settings = settings_from(dir=dir, listen=listen, namespace=namespace, labels=labels, log_level=log_level)
    logs.configure(settings.log_level, log_format)
    warn_of_unknown_variables()
    tls, middleware = None, []
    if web_config:
        from jobmetrics.exporter.web import config
        from jobmetrics.exporter.web.tls import RenewedContext

        web = config.load(web_config)
        tls = RenewedContext(web.tls, ThrottledLog()) if web.tls is not None else None
        middleware.append(Middleware(apps.AddHeaders, web.headers))
        if web.users is not None:
            from jobmetrics.exporter.web.auth import authentication

            middleware.append(authentication(web.users))
    app = build(settings, collector_options(**brokers), refresh=refresh, hide_after=hide_after_seconds(hide_after))
    app.directory.require(missing_ok=True)
    sockets = server.listen(settings.listen)
    app.collectors.start()
    url = server.url(sockets[0], "http" if tls is None else "https")
    try:
        server.serve(
            apps.site(app, middleware),
            sockets,
            tls=tls,
            ready=partial(_ready, f"serving {url}/metrics from {settings.dir}", log_format),
            ended=partial(notify_systemd, "STOPPING=1"),
        )
    finally:
        app.close()
    return 0


def _ready(message: str, log_format: str) -> None:
    """Print the address that it serves on, at any log level, and notify systemd."""
    if log_format == logs.JSON:
        record = logger.makeRecord(logger.name, logging.INFO, "", 0, message, (), None)
        message = logs.JsonFormatter().format(record)
    else:
        message = f"jobmetrics exporter: {message}"
    sys.stderr.write(f"{message}\n")  # one write: print writes the newline apart, and collectors log at the same time
    sys.stderr.flush()
    notify_systemd("READY=1")


def notify_systemd(state: str) -> bool:
    """Send a state such as READY=1 to systemd (sd_notify(3)), if systemd started the process as Type=notify.

    Errors are ignored: the exporter goes on without a service manager.

    Returns:
        Whether the state was sent.
    """
    address = os.environ.get(NOTIFY_VARIABLE, "")
    if not address or not hasattr(socket, "AF_UNIX"):
        return False
    if address.startswith("@"):
        address = "\0" + address[1:]  # Linux' abstract namespace
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.connect(address)
            sock.sendall(state.encode())
    except (OSError, ValueError):
        return False
    return True
