"""Sphinx: `make docs` writes the site to docs/_build/html."""

from __future__ import annotations

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
