"""For `imports = ("jobmetrics.celery.plugin",)`: importing this module is what turns recording on.

Celery imports such modules in the worker before it sends its first signal.
"""

from __future__ import annotations

from jobmetrics.celery import instrument

instrument()
