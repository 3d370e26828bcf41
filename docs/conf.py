"""Sphinx's settings. Reference pages and pictures are made first, by `generate.py`."""

import os
import re
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import generate
from docutils import nodes

import sparqle_tvm

project = "sparqle_tvm"
author = "The sparqle_tvm authors"
version = release = sparqle_tvm.__version__

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
# Drawings are included in pages, and are none themselves.
exclude_patterns = ["_build", "generated/*.svg.md"]

# `make docs NOTEBOOKS=off` shows the tutorials without running them.
nb_execution_mode = os.environ.get("NOTEBOOKS", "cache")
nb_execution_timeout = 900
nb_execution_raise_on_error = True
nb_execution_show_tb = True
nb_execution_in_temp = True
nb_merge_streams = True
# Progress bars would fill pages with their last states.
nb_output_stderr = "remove"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3
# Titles of links to headings of other documents are checked.
nitpicky = False
# Attributes of several classes have one name, as "shape".
suppress_warnings = ["mystnb.unknown_mime_type", "ref.python"]

autodoc_typehints = "none"
autodoc_member_order = "bysource"
autodoc_default_options = {"members": True}
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_preprocess_types = False

html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = "sparqle_tvm"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_show_sourcelink = False
html_theme_options = {"navigation_with_keys": True}
# Nothing is fetched when pages are read: there are no formulas, and so no script for them.
html_math_renderer = "none"


def setup(app: Any) -> None:
    """Make what is made of code."""
    app.add_html_math_renderer("none", (None, None), (None, None))
    app.connect("builder-inited", lambda _: generate.write_all(Path(__file__).parent))
    app.connect("source-read", _relink)
    app.connect("doctree-read", _give_room)


def _relink(_: Any, name: str, source: list[str]) -> None:
    """Turn links that hold in the repository into those of the site, where tutorials are copies.

    Drawings are there as SVG, in the colours of the page.
    """
    if name.startswith("generated/tutorials/"):
        source[0] = source[0].replace("](../docs/", "](../../")
    else:
        source[0] = source[0].replace("](../tutorials/", "](generated/tutorials/")
        drawing = r"^!\[.*\]\((array|planes|tile)\.png\)$"
        source[0] = re.sub(drawing, r"```{include} generated/\1.svg.md\n```", source[0], flags=re.M)


def _give_room(_: Any, document: nodes.document) -> None:
    """Mark columns of tables by the length of their texts; `site.css` has widths for them."""
    for table in document.findall(nodes.table):
        rows = [row.children for row in table.findall(nodes.row)]
        columns = list(zip(*rows, strict=False))
        for column in columns:
            longest = max(len(entry.astext()) for entry in column)
            if longest > 12:
                for entry in column:
                    entry["classes"].append("long" if longest > 60 else "middle")
        if len(columns) > 4:
            table["classes"].append("many")
