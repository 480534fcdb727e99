"""The command group. Each command has a separate module, except `rules` and `dashboards`, which share one."""

from __future__ import annotations

import click

from jobmetrics import __version__
from jobmetrics.cli.check import check
from jobmetrics.cli.dump import dump
from jobmetrics.cli.exporter import exporter
from jobmetrics.cli.options import from_file
from jobmetrics.cli.prune import prune
from jobmetrics.cli.running import running
from jobmetrics.cli.shipped import dashboards, rules
from jobmetrics.cli.top import top
from jobmetrics.errors import SettingsError

# The commands that take defaults from the table [exporter] of the configuration file.
READERS = ("exporter", "dump", "top", "check")

SETTINGS_HELP = """
Every setting is also an environment variable (JOBMETRICS_DIR, JOBMETRICS_LISTEN,
JOBMETRICS_NAMESPACE, ...) and a key of the TOML file that JOBMETRICS_CONFIG names.
Options override the environment, and the environment overrides the file.
Options that are not settings are keys of the file's table [exporter],
such as timeout = 10.
"""


@click.group(
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 80},
    epilog=SETTINGS_HELP,
)
@click.version_option(__version__, message="%(prog)s %(version)s")
@click.pass_context
def jobmetrics(context: click.Context) -> None:
    """Prometheus metrics of background jobs."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
    elif context.invoked_subcommand in READERS:
        try:
            context.default_map = {context.invoked_subcommand: from_file()}
        except SettingsError:
            if context.invoked_subcommand != "check":  # check reports it as a finding
                raise


jobmetrics.add_command(exporter)
jobmetrics.add_command(dump)
jobmetrics.add_command(top)
jobmetrics.add_command(check)
jobmetrics.add_command(running)
jobmetrics.add_command(prune)
jobmetrics.add_command(rules)
jobmetrics.add_command(dashboards)
