"""The jobs of the RQ benchmark. Each work-horse imports this module, so it imports only what a job needs."""

from __future__ import annotations


def empty() -> None:
    """The job."""


def counted() -> None:
    """The job with prometheus_client inside."""
    from benchmarks import rq_peer

    with rq_peer.observed():
        pass
