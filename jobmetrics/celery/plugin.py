"""The module for `imports = ("jobmetrics.celery.plugin",)`: its import turns recording on.

Celery imports these modules in the worker before it sends its first signal.
"""

from __future__ import annotations

from jobmetrics.celery import instrument

instrument()
