"""Where the examples' applications are, whose jobs the demo runs."""

from __future__ import annotations

from pathlib import Path

from jobmetrics.demo.errors import DemoError

PLACES = (Path(__file__).parent / "examples", Path(__file__).parents[2] / "examples")
"""In a wheel they lie within this package; in a checkout, beside it."""
APPLICATIONS = ("celery_app", "rq_app", "shop")


def folder() -> Path:
    """The folder to import them from; DemoError when there is none."""
    for place in PLACES:
        if all((place / name / "__init__.py").is_file() for name in APPLICATIONS):
            return place
    raise DemoError(f"the applications that the demo runs are missing: neither {PLACES[0]} nor {PLACES[1]} has them")
