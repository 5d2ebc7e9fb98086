"""The site: what README, docs, notebooks and results say, as pages. `make docs` builds it into dist/site.

Nothing is run: notebooks show their saved outputs. The source is the repository itself, so a link between two pages
is the same link on a code host. Formulas become MathML as the pages are written, so a page loads nothing from
another place.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from pages import SECTIONS, repository

import steer_core

project = "steer-core"
author = "The steer-core maintainers"
version = release = steer_core.__version__
html_title = "steer-core"

extensions = [
    "sphinx.ext.autodoc",
    "myst_nb",
    "sphinx_copybutton",
    "mathml",
    "docstrings",
    "pages",
]
root_doc = "README"
include_patterns = [pattern for patterns in SECTIONS.values() for pattern in patterns]
include_patterns += ["README.md"]
exclude_patterns = [".venv", "runs", "dist", "models", "**/.ipynb_checkpoints", "**/__pycache__"]
templates_path = ["templates"]

nb_execution_mode = "off"
nb_merge_streams = True
nb_ipywidgets_js = {}
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 6
myst_links_external_new_tab = False
suppress_warnings = ["myst.header", "mystnb.mime_priority", "misc.highlighting_failure"]
"""Not told: a page that skips a level of headings, a widget's view (its figure stands beside it), odd code."""

autodoc_default_options = {"member-order": "bysource"}
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
default_role = "code"
nitpicky = False

html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
html_sidebars = {
    "**": [
        "sidebar/brand.html",
        "sidebar/search.html",
        "play.html",
        "sidebar/scroll-start.html",
        "sidebar/navigation.html",
        "sidebar/scroll-end.html",
    ]
}
html_theme_options = {"navigation_with_keys": True, "top_of_page_buttons": []}
if repository():
    html_theme_options |= {
        "source_repository": repository(),
        "source_branch": "main",
        "source_directory": "",
        "top_of_page_buttons": ["edit"],
    }
