"""The project's Markdown pages as data: their code blocks, links and anchors."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token
from mdit_py_plugins.anchors.index import slugify

from tools import docs_reference

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
PAGES = tuple(sorted(path for path in DOCS.rglob("*.md") if "_build" not in path.parts))
OTHERS = tuple(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md"))

_ID = re.compile(r"\{#([^}]+)\}")


def name_of(path: Path) -> str:
    """A page's path as tests show it."""
    return str(path.relative_to(ROOT))


@dataclass(frozen=True)
class Block:
    """A code block. language: the first word after the fence, empty without one. line: its first line number."""

    page: Path
    language: str
    text: str
    line: int
    fenced: bool

    def __str__(self) -> str:
        return f"{name_of(self.page)}:{self.line}"


@cache
def tokens(page: Path) -> tuple[Token, ...]:
    """The page's parsed Markdown."""
    return tuple(MarkdownIt("commonmark").enable("table").parse(page.read_text()))


def blocks(*pages: Path) -> list[Block]:
    """All code blocks without MyST directives."""
    found = []
    for page in pages:
        for token in tokens(page):
            if token.type in ("fence", "code_block") and not token.info.startswith("{"):
                language = token.info.split()[0] if token.info else ""
                line = token.map[0] + 1 if token.map else 0
                found.append(Block(page, language, token.content, line, token.type == "fence"))
    return found


def _inline(page: Path) -> Iterator[Token]:
    for token in tokens(page):
        yield from token.children or ()


def links(page: Path) -> list[str]:
    """The targets of all links and images."""
    attributes = {"link_open": "href", "image": "src"}
    return [str(token.attrs[attributes[token.type]]) for token in _inline(page) if token.type in attributes]


def code_words(page: Path) -> list[str]:
    """The text of inline code."""
    return [token.content for token in _inline(page) if token.type == "code_inline"]


@cache
def anchors(page: Path) -> frozenset[str]:
    """The fragments that a link to the page may have."""
    headings = [
        slugify("".join(child.content for child in after.children or ()))
        for token, after in itertools.pairwise(tokens(page))
        if token.type == "heading_open" and token.tag in ("h1", "h2", "h3")
    ]
    return frozenset(headings) | set(_ID.findall(docs_reference.with_anchors(page.read_text())))
