"""/metrics over HTTP, as numbers to ask for."""

from __future__ import annotations

import http.client
import urllib.error
import urllib.request
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from http import HTTPStatus

from prometheus_client.parser import text_string_to_metric_families

TIMEOUT_SECONDS = 5.0

# The exporter is on this machine; a proxy of the environment has no business in between.
_opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class ScrapeError(Exception):
    """/metrics could not be read."""


@dataclass(frozen=True)
class Sample:
    """One line of an exposition."""

    labels: Mapping[str, str]
    value: float


class Exposition:
    """The samples of one scrape, by the name that stands on the line."""

    def __init__(self, text: str) -> None:
        self._samples: dict[str, list[Sample]] = defaultdict(list)
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                self._samples[sample.name].append(Sample(sample.labels, sample.value))

    def samples(self, name: str, labels: Mapping[str, str] | None = None) -> list[Sample]:
        """Samples that carry all of `labels`; an empty list where there is none."""
        wanted = (labels or {}).items()
        return [sample for sample in self._samples.get(name, ()) if wanted <= sample.labels.items()]

    def total(self, name: str, labels: Mapping[str, str] | None = None) -> float:
        """Sum over the samples that carry all of `labels`; 0 where there is none."""
        return sum(sample.value for sample in self.samples(name, labels))

    def by(self, name: str, label: str, labels: Mapping[str, str] | None = None) -> dict[str, float]:
        """Sums over the samples that carry all of `labels`, one for each value of `label`."""
        sums: dict[str, float] = defaultdict(float)
        for sample in self.samples(name, labels):
            sums[sample.labels.get(label, "")] += sample.value
        return dict(sums)


def scrape(url: str) -> Exposition:
    """Fetch and parse `url`; ScrapeError if it cannot be had or is no exposition."""
    request = urllib.request.Request(url, headers={"Accept": "text/plain;version=0.0.4"})
    try:
        with _opener.open(request, timeout=TIMEOUT_SECONDS) as response:
            if response.status != HTTPStatus.OK:
                raise ScrapeError(f"{url} answered {response.status}")
            return Exposition(response.read().decode("utf-8"))
    except (OSError, http.client.HTTPException, urllib.error.URLError, ValueError) as error:
        raise ScrapeError(f"{url}: {error}") from error
