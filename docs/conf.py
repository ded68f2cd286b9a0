"""Sphinx settings: MyST Markdown, furo, API pages from docstrings, tables generated from the code itself."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from generate import write_all

import dhc

project = "dhc"
author = "The dhc maintainers"
copyright = f"2026, {author}"
release = dhc.__version__
version = release

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "_generated"]
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

html_theme = "furo"
html_title = f"dhc {release}"
html_show_sourcelink = False

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
napoleon_google_docstring = True
napoleon_numpy_docstring = False
# `Attributes:` of a dataclass describe the fields that autodoc lists already: one of the two is enough.
napoleon_use_ivar = True

write_all(Path(__file__).parent / "_generated")
