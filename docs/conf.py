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


def setup(app: Sphinx) -> None:
    """Register the callback with Sphinx."""
    app.connect("source-read", _with_anchors)
