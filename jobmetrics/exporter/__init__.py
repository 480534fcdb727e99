"""The exporter: reads the registry directory and the brokers, and serves what it finds to Prometheus.

`make_wsgi_app` and `make_asgi_app` are for web processes that serve the metrics beside their own pages.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from jobmetrics.exporter.web.apps import make_asgi_app, make_wsgi_app

__all__ = ["make_asgi_app", "make_wsgi_app"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from jobmetrics.exporter.web import apps  # on use: most commands need none of it

    return getattr(apps, name)
