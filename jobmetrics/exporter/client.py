"""Read the metrics that another process serves, such as an exporter."""

from __future__ import annotations

import base64
import http.client
import ipaddress
import urllib.error
import urllib.request
from urllib.parse import unquote, urlsplit, urlunsplit

from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from jobmetrics.collector_api import safe_url
from jobmetrics.errors import JobmetricsError, SettingsError

TIMEOUT = 10.0  # seconds
MAX_BYTES = 100 * 2**20
SCHEMES = ("http://", "https://")
TEXT_FORMAT = "text/plain;version=0.0.4"


def read_metrics(url: str) -> list[Metric]:
    """Read the metrics at a URL. A loopback address is read without the proxy of the environment.

    Args:
        url: An http or https URL, which may contain a user and a password. The default path is /metrics.

    Raises:
        SettingsError: The URL is not valid.
        JobmetricsError: The URL cannot be read, or does not serve metrics. The message contains no password.
    """
    if not url.startswith(SCHEMES):
        raise SettingsError(f"{safe_url(url)!r} is not allowed; it takes http://HOST:PORT/metrics")
    text = _get(url)
    try:
        return list(text_string_to_metric_families(text))
    except ValueError:
        raise JobmetricsError(f"{safe_url(url)} does not serve metrics in Prometheus' text format") from None


def _get(url: str) -> str:
    try:
        request, host = _request(url)
        handlers = [urllib.request.ProxyHandler({})] if _is_loopback(host) else []
        with urllib.request.build_opener(*handlers).open(request, timeout=TIMEOUT) as answer:
            text: str = answer.read(MAX_BYTES).decode("utf-8", "replace")
            return text
    except urllib.error.HTTPError as error:
        error.close()
        raise JobmetricsError(f"{safe_url(url)} answers {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise JobmetricsError(
            f"{safe_url(url)} cannot be read: {getattr(reason, 'strerror', None) or reason}"
        ) from None


def _request(url: str) -> tuple[urllib.request.Request, str]:
    """Return the request and its host. Credentials move from the URL to a header."""
    parts = urlsplit(url)
    bare = urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path or "/metrics", parts.query, ""))
    request = urllib.request.Request(bare, headers={"Accept": TEXT_FORMAT})  # noqa: S310 - the caller checked the scheme
    if parts.username is not None:
        word = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
        request.add_header("Authorization", "Basic " + base64.b64encode(word.encode()).decode())
    return request, parts.hostname or ""


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
