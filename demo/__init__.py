"""`make demo`: run the examples' jobs on real Celery and RQ workers, kill processes in the middle of jobs, and compare
what was sent with what the exporter counted.
"""

from __future__ import annotations


class DemoError(Exception):
    """The demo cannot continue. The message is shown to the user."""
