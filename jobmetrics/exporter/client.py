"""Read what another process serves, such as an exporter's metrics."""

from __future__ import annotations

import base64
import http.client
import ipaddress
import urllib.error
import urllib.request
from email.message import Message
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
    try:
        _, text = get(url)
    except urllib.error.HTTPError as error:
        error.close()
        raise JobmetricsError(f"{safe_url(url)} answers {error.code} {error.reason}") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        reason = getattr(error, "reason", None) or error
        raise JobmetricsError(
            f"{safe_url(url)} cannot be read: {getattr(reason, 'strerror', None) or reason}"
        ) from None
    try:
        return list(text_string_to_metric_families(text))
    except ValueError:
        raise JobmetricsError(f"{safe_url(url)} does not serve metrics in Prometheus' text format") from None


def get(
    url: str, *, seconds: float = TIMEOUT, most: int = MAX_BYTES, through_proxy: bool = True
) -> tuple[Message, str]:
    """Return the headers and the text at an http or https URL. The default path is /metrics.

    Args:
        url: The URL, which may contain a user and a password.
        seconds: The time that each step of the connection may take.
        most: The number of bytes to read. The rest is left out.
        through_proxy: Whether to use the proxy of the environment, unless the address is a loopback address.

    Raises:
        OSError: The URL cannot be read, or answers with an error (HTTPError).
        HTTPException: The answer is not HTTP.
        ValueError: The URL is not valid.
    """
    request, host = _request(url)
    handlers = [urllib.request.ProxyHandler({})] if not through_proxy or _is_loopback(host) else []
    with urllib.request.build_opener(*handlers).open(request, timeout=seconds) as answer:
        return answer.headers, answer.read(most).decode("utf-8", "replace")


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
