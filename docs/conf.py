"""How Sphinx builds these pages: Markdown by MyST, with the reference tables made from the code as it is built."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx
    from sphinx.environment import BuildEnvironment

DOCS = Path(__file__).resolve().parent
sys.path.insert(0, str(DOCS.parent))

from jobmetrics import __version__  # noqa: E402 - the path comes first
from tools import docs_reference  # noqa: E402 - as above

project = "jobmetrics"
version = release = __version__
language = "en"

extensions = ["myst_parser"]
myst_enable_extensions = ["attrs_inline"]
myst_heading_anchors = 3  # page.md#heading, as Git hosts have it
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "*-measured.md"]  # the latter are parts of other pages
nitpicky = True

html_theme = "furo"
html_static_path = ["_static"]
html_css_files = ["tables.css"]
html_title = f"jobmetrics {release}"
html_copy_source = False
html_show_copyright = False


def _fill_in(_app: Sphinx, _docname: str, source: list[str]) -> None:
    source[0] = docs_reference.fill_in(source[0])


def _generated(_app: Sphinx, env: BuildEnvironment, *_changes: set[str]) -> list[str]:
    """Pages to read anew though their files have not changed: the code may have."""
    return [name for name in env.found_docs if any(docs_reference.markers(Path(env.doc2path(name)).read_text()))]


def setup(app: Sphinx) -> None:
    """Sphinx calls this."""
    app.connect("source-read", _fill_in)
    app.connect("env-get-outdated", _generated)
