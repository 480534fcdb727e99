"""`jobmetrics demo`: everything at once, on real workers."""

from __future__ import annotations

import click


@click.command()
@click.option(
    "--seconds", type=click.FloatRange(0), default=None, metavar="N", envvar="DEMO_SECONDS", show_envvar=True,
    help="How long to send jobs.  [default: on a terminal until Ctrl-C, else 20]",
)  # fmt: skip
def demo(seconds: float | None) -> int:
    """Run real Celery and RQ workers, the exporter and a producer.

    Shows what happens, then compares what was sent with what the jobs wrote down
    and with what the exporter counted. Exit code 1 if they differ.
    """
    from jobmetrics.demo.run import main

    return main(seconds)
