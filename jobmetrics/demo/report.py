"""What the demo prints at its end."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

from jobmetrics.demo.compare import Comparison


def console(*, stderr: bool = False) -> Console:
    """Where the demo prints; lines are left as long as they are."""
    return Console(stderr=stderr, highlight=False, soft_wrap=True)


def say(out: Console, text: str, style: str = "") -> None:
    """Print text as it is: a '[' in a log or a job type is no markup."""
    out.print(Text(text, style=style))


def verdict(out: Console, comparisons: Sequence[Comparison], executions: int) -> bool:
    """Print every comparison and what follows from all; True if everything agrees and there was something."""
    say(out, "What was sent, what the jobs wrote down themselves, and what /metrics counted:")
    for comparison in comparisons:
        say(out, f"  {comparison}" if comparison.agrees else f"  DIFFERENT {comparison}", _style(comparison))
    different = [comparison for comparison in comparisons if not comparison.agrees]
    if executions == 0:
        say(out, "Nothing was executed, so there is nothing to compare.", "bold red")
        return False
    if different:
        say(out, f"{len(different)} of {len(comparisons)} comparisons differ:", "bold red")
        for comparison in different:
            say(out, f"  {comparison}", "red")
        return False
    agreed = f"sent = ledger = counted: {executions} executions, {len(comparisons)} comparisons."
    say(out, agreed, "bold green")
    return True


def _style(comparison: Comparison) -> str:
    return "" if comparison.agrees else "red"
