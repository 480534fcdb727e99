"""`make demo`: the examples' jobs on real Celery and RQ workers, some of them killed, and what was sent compared with
what the exporter counted.
"""

from __future__ import annotations


class DemoError(Exception):
    """The demo cannot go on; the message is for the person who started it."""
