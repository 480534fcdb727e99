"""`jobmetrics prune`: forget everything counted so far."""

from __future__ import annotations

import sys

import click

from jobmetrics.cli import logs
from jobmetrics.cli.options import directory_option, settings_from, warn_of_unknown_variables
from jobmetrics.errors import SettingsError


@click.command()
@directory_option
@click.option("--yes", is_flag=True, help="Do not ask.")
def prune(dir: str | None, yes: bool) -> int:  # noqa: A002 - the option is called so
    """Forget everything counted so far, once all workers have stopped.

    The index, all slots and what was set aside are removed; whoever records next begins at 0.
    Exit code 1, and nothing removed, while a living process holds a slot.
    """
    from jobmetrics.registry.directory import Directory, SlotsHeld
    from jobmetrics.registry.directory import prune as forget

    settings = settings_from(dir=dir)
    logs.configure(settings.log_level)
    warn_of_unknown_variables()
    directory = Directory(settings.dir, settings.dir_group, settings.dir_owner)
    directory.check()
    if not yes:
        if not sys.stdin.isatty():
            raise SettingsError("prune asks before it removes anything, and here nobody can answer; add --yes")
        click.confirm(f"Forget all that was counted in {settings.dir}?", abort=True)
    try:
        removed = forget(directory)
    except SlotsHeld as error:
        click.echo(f"jobmetrics: nothing was removed: {error}", err=True)
        return 1
    print(f"{removed} files removed from {settings.dir}")
    return 0
