"""The console entry point: run a command and turn errors into one line and an exit code.

Exit codes: 0 for success; 1 for a failure at run time or a problem that the command reports; 2 for bad input, such as
a wrong option, setting or configuration file; 130 after Ctrl-C.
"""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from jobmetrics.errors import JobmetricsError, SettingsError

PROGRAM = "jobmetrics"
FAILED = 1
BAD_INPUT = 2
INTERRUPTED = 130


def main() -> NoReturn:
    """Run the command named by the arguments, and exit."""
    try:
        code = _run()
    except KeyboardInterrupt:
        code = INTERRUPTED
    sys.exit(code)


def _run() -> int:
    try:
        import click

        from jobmetrics.cli.group import jobmetrics
    except ModuleNotFoundError as error:
        return _missing(error)
    try:
        result = jobmetrics.main(prog_name=PROGRAM, standalone_mode=False)
    except click.ClickException as error:
        return _complain(f"{error.format_message()} (see jobmetrics --help)", BAD_INPUT)
    except click.Abort:
        return INTERRUPTED
    except SettingsError as error:
        return _complain(str(error), BAD_INPUT)
    except JobmetricsError as error:
        return _complain(str(error), FAILED)
    except ModuleNotFoundError as error:
        return _missing(error)
    except OSError as error:
        what = f"{error.filename}: " if error.filename else ""
        return _complain(f"{what}{error.strerror or error}", FAILED)
    except Exception as error:  # an operator gets one line instead of a traceback
        if os.environ.get("JOBMETRICS_LOG_LEVEL", "").lower() == "debug":
            raise
        return _complain(
            f"unexpected {type(error).__name__}: {error}; this is a bug; "
            "JOBMETRICS_LOG_LEVEL=debug shows the traceback",
            FAILED,
        )
    return result if isinstance(result, int) else 0


def _missing(error: ModuleNotFoundError) -> int:
    name = error.name or str(error)
    if name.partition(".")[0] == PROGRAM:
        return _complain(f"{name} is missing from this installation", FAILED)
    return _complain(f"this command needs {name}; pip install 'jobmetrics[exporter]'", FAILED)


def _complain(message: str, code: int) -> int:
    from jobmetrics.cli.logs import printable
    from jobmetrics.collector_api import without_secrets

    print(f"{PROGRAM}: {printable(without_secrets(message))}", file=sys.stderr)
    return code
