"""Settings of the documentation."""

import inspect
import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from keras_qusec.version import __version__ as release

project = "keras-qusec"
author = "The keras-qusec developers"
project_copyright = "The keras-qusec developers"
extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
# Tutorials are run each time that the pages are built, each in a folder of its own.
nb_execution_mode = "force"
nb_execution_in_temp = True
nb_execution_timeout = 300
nb_execution_raise_on_error = True
# TensorFlow greets there.
nb_output_stderr = "remove"
html_theme = "furo"
html_title = f"keras-qusec {release}"
exclude_patterns = [
    "_build",
    "jupyter_execute",
    "defenses/comparison_table.md",
    "strength.md",
    "audit_rules.md",
    "audit_controls.md",
]
autodoc_typehints = "none"
autodoc_member_order = "bysource"
myst_heading_anchors = 3
# A block without a language is the command line or its output.
highlight_language = "none"


def _own_signature(_app, what, _name, obj, _options, signature, return_annotation):
    """The arguments of a class's own `__init__`: Keras' `__new__` takes (*args, **kwargs)."""
    if what == "class" and signature == "(*args, **kwargs)":
        parameters = list(inspect.signature(obj.__init__).parameters.values())[1:]
        bare = [one.replace(annotation=one.empty) for one in parameters]
        signature = str(inspect.Signature(bare))
    return signature, return_annotation


def setup(app):
    app.connect("autodoc-process-signature", _own_signature)
