"""Sphinx: `make docs` writes the site to docs/_build/html."""

from __future__ import annotations

from typing import Any

from unfused_fast import __version__

project = "unfused-fast"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
html_theme = "furo"
html_title = f"unfused-fast {__version__}"
html_show_copyright = html_show_sphinx = False

myst_heading_anchors = 3
"""Links to headings are those that forges make of them."""
default_role = "literal"
highlight_language = "none"
autodoc_member_order = "bysource"
autodoc_typehints_format = "short"


def attribute_as_written(app: Any, what: str, name: str, found: Any, options: Any, lines: list[str]) -> None:
    """Puts back what napoleon takes for the type of an attribute: the beginning of its text up to a colon."""
    of_value = what in ("attribute", "property", "data")
    types = [line for line in lines if of_value and line.startswith(":type: ")]
    lines[:] = [line for line in lines if line not in types]
    for line in reversed(types):
        lines[0] = f"{line.removeprefix(':type: ')}: {lines[0]}"


def setup(app: Any) -> None:
    """After napoleon, whose priority is 500."""
    app.connect("autodoc-process-docstring", attribute_as_written, priority=900)
