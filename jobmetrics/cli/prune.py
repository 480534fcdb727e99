"""`jobmetrics prune`: remove everything recorded so far."""

from __future__ import annotations

import sys

import click

from jobmetrics.cli import logs
from jobmetrics.cli.options import directory_option, settings_from, warn_of_unknown_variables
from jobmetrics.errors import SettingsError


@click.command()
@directory_option
@click.option("--yes", is_flag=True, help="Do not ask for confirmation.")
def prune(dir: str | None, yes: bool) -> int:  # noqa: A002 - the option's name
    """Remove everything recorded so far, after all workers have stopped.

    This removes the index, all slots and the damaged files that were set aside. Counts begin again at 0.
    While a live process holds a slot, nothing is removed and the exit code is 1.
    """
    from jobmetrics.registry import Directory, SlotsHeld
    from jobmetrics.registry import prune as forget

    settings = settings_from(dir=dir)
    logs.configure(settings.log_level)
    warn_of_unknown_variables()
    directory = Directory(settings.dir, settings.dir_group, settings.dir_owner)
    directory.check()
    if not yes:
        if not sys.stdin.isatty():
            raise SettingsError("prune asks for confirmation, and stdin is not a terminal; add --yes")
        click.confirm(f"Remove everything recorded in {settings.dir}?", abort=True)
    try:
        removed = forget(directory)
    except SlotsHeld as error:
        click.echo(f"jobmetrics: nothing was removed: {error}", err=True)
        return 1
    print(f"{removed} files removed from {settings.dir}")
    return 0
