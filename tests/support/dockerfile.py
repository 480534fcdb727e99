"""A Dockerfile as stages of instructions: the part of the format that the project's Dockerfile uses."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class Stage:
    """A FROM instruction and the following ones. parent: an image, or the name of another stage."""

    name: str
    parent: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, instruction: str) -> list[str]:
        """The arguments of every such instruction, in order."""
        return [argument for name, argument in self.instructions if name == instruction]


def stages(path: Path) -> dict[str, Stage]:
    """The stages by name."""
    found: dict[str, Stage] = {}
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]
    for line in re.sub(r"\\\n\s*", "", "\n".join(lines)).splitlines():
        name, _, argument = line.partition(" ")
        if name == "FROM":
            parent, _, alias = argument.partition(" AS ")
            stage = found[alias] = Stage(alias, parent)
        else:
            stage.instructions.append((name, argument))
    return found
