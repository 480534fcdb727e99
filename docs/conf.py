"""Sphinx's configuration: Markdown pages by MyST, with link targets on the rows of the reference tables."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

from jobmetrics import __version__  # noqa: E402 - the path comes first
from tools import docs_reference  # noqa: E402 - as above

project = "jobmetrics"
version = release = __version__
language = "en"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_use_rtype = False
myst_enable_extensions = ["attrs_inline"]
myst_heading_anchors = 3  # for links to page.md#heading, as on Git hosts
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "*-measured.md"]  # other pages include the latter
nitpicky = True
nitpick_ignore_regex = [(r"py:.*", r".*")]  # types of other projects; a build without a network cannot resolve them

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_title = f"jobmetrics {release}"
html_copy_source = False
html_show_copyright = False


def _with_anchors(_app: Sphinx, _docname: str, source: list[str]) -> None:
    source[0] = docs_reference.with_anchors(source[0])


def _is_field(_app: Sphinx, _what: str, _name: str, member: object, _skip: bool, _options: object) -> bool | None:
    """Leave out the fields of named tuples ("Alias for field number 0"), which the class's docstring describes."""
    return True if type(member).__name__ == "_tuplegetter" else None


def _clear_docstring_of_type(
    _app: Sphinx, what: str, _name: str, member: object, _options: object, lines: list[str]
) -> None:
    """Leave out the docstring of str or tuple below a constant."""
    if what == "data" and member.__doc__ == type(member).__doc__:
        lines.clear()


def setup(app: Sphinx) -> None:
    """Register the callbacks with Sphinx."""
    app.connect("source-read", _with_anchors)
    app.connect("autodoc-skip-member", _is_field)
    app.connect("autodoc-process-docstring", _clear_docstring_of_type)
