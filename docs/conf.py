"""The site: `make docs` builds it from these pages and the published notebooks, without running one.

The source folder is the checkout, so that links between pages, notebooks and figures are the same on disk and here.
"""

import os
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]
os.environ.setdefault("MPLBACKEND", "agg")

project = "Mnemosyne"
author = copyright = "The mnemosyne developers"

repository = ""
"""Address of the public repository, as https://github.com/owner/name. With one, chapters link to Colab and Binder."""

extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.mathjax",
    "sphinx-mathjax-offline",  # MathJax as files of the site: nothing is fetched when a page is read
    "house",
]
root_doc = "docs/index"
include_patterns = ["docs/*.md", "notebooks/*.ipynb", "colab.ipynb", "data/README.md"]
exclude_patterns = [".venv*", ".git", "data/cache", "data/raw", "data/meta-training", "runs", "tests", "mnemosyne"]

nb_execution_mode = "off"
nb_merge_streams = True
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 4

autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_google_docstring = True
napoleon_use_rtype = False

html_theme = "sphinx_book_theme"
html_title = "Mnemosyne"
html_static_path = ["_static"]
html_css_files = ["house.css"]
html_js_files = ["ledger.js"]
html_show_sourcelink = False
html_copy_source = False
html_theme_options = {
    "home_page_in_toc": True,
    "navbar_persistent": [],  # one search field is enough
    "show_navbar_depth": 1,
    "show_toc_level": 2,
    "use_download_button": False,
}
pygments_style = "default"
