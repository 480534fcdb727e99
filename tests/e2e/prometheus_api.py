"""Queries to a running Prometheus, over its HTTP API."""

from __future__ import annotations

import json
import math
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import Any

_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
_SECONDS = 30.0


class QueryRefused(Exception):
    """Prometheus refuses the expression."""


class PrometheusApi:
    """url: without a final slash."""

    def __init__(self, url: str) -> None:
        self._url = url

    def finds(self, expression: str) -> bool:
        """Whether an expression returns at least one number now.

        Raises:
            QueryRefused: if it cannot be parsed or evaluated.
        """
        found = self._ask("query", query=expression)
        if found["resultType"] == "scalar":
            return True
        return any(_is_number(series["value"][1]) for series in found["result"])

    def found_lately(self, expression: str, seconds: float) -> bool:
        """Whether an expression returned a number at any time in this number of seconds. Raises as `finds`."""
        now = time.time()
        found = self._ask("query_range", query=expression, start=str(now - seconds), end=str(now), step="1")
        return any(_is_number(value) for series in found["result"] for _, value in series["values"])

    def label_values(self, label: str, selector: str) -> list[str]:
        """The values of a label among the selected series."""
        values: list[str] = self._ask(f"label/{label}/values", **{"match[]": selector})
        return values

    def rules(self) -> list[dict[str, Any]]:
        """Every rule in Prometheus: its name, health and last error."""
        groups = self._ask("rules")["groups"]
        return [rule for group in groups for rule in group["rules"]]

    def reload(self) -> None:
        """Reload the configuration."""
        with _direct.open(urllib.request.Request(f"{self._url}/-/reload", method="POST"), timeout=_SECONDS):
            pass

    def _ask(self, what: str, **parameters: str) -> Any:
        address = f"{self._url}/api/v1/{what}?{urllib.parse.urlencode(parameters)}"
        try:
            with _direct.open(address, timeout=_SECONDS) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            with error:
                raise QueryRefused(f"{parameters}: {json.load(error)['error']}") from None


def _is_number(value: str) -> bool:
    return not math.isnan(float(value))
