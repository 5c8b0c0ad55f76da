"""Settings of the documentation."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from keras_qusec.version import __version__ as release

project = "keras-qusec"
author = "The keras-qusec developers"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
html_theme = "furo"
html_title = f"keras-qusec {release}"
exclude_patterns = [
    "_build",
    "defenses/comparison_table.md",
    "strength.md",
    "audit_rules.md",
    "audit_controls.md",
]
autodoc_typehints = "none"
autodoc_member_order = "bysource"
myst_heading_anchors = 3
