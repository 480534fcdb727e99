"""The exporter reads the registry directory and the brokers, and serves the metrics to Prometheus.

`make_wsgi_app` and `make_asgi_app` mount the metrics in another web application.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobmetrics.exporter.web.apps import make_asgi_app, make_wsgi_app

__all__ = ["make_asgi_app", "make_wsgi_app"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from jobmetrics.exporter.web import apps  # most commands do not serve HTTP

    return getattr(apps, name)
