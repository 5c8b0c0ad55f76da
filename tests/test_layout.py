"""The package's imports: downwards only, in the order that docs/design.md shows, none hidden."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import keras_qusec

pytestmark = pytest.mark.once

ROOT = Path(keras_qusec.__file__).parent
FILES = sorted(ROOT.rglob("*.py"))
# From the bottom to the top: a file imports files of its own room and of rooms before it.
ROOMS = [
    "version",
    "checks",
    "registry",
    "statistics",
    "files",
    "results",
    "norms",
    "backends",
    "sublayers",
    "stored_images",
    "digests",
    "progress",
    "parallel",
    "custom_gradients",
    "quantization",
    "graphs",
    "integer_inputs",
    "logits",
    "tasks",
    "expected_inputs",
    "models",
    "image_folders",
    "datasets",
    "plots",
    "defenses",
    "attacks",
    "verify",
    "certification",
    "training",
    "report",
    "evaluation",
    "suggestion",
    "deployment",
    "audit",
    "comparison",
    "reproduction",
    "demo",
    "commands",
    "__main__",
]


def name_of(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(["keras_qusec", *(part for part in parts if part != "__init__")])


NAMES = {name_of(path): path for path in FILES}


def imports_of(path):
    """The modules of this package that a file names in an import, wherever in the file."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in NAMES)
        elif (
            isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "keras_qusec"
        ):
            for alias in node.names:
                deeper = f"{node.module}.{alias.name}"
                yield deeper if deeper in NAMES else node.module


GRAPH = {name: set(imports_of(path)) - {name} for name, path in NAMES.items()}


def room_of(name):
    parts = name.split(".")
    return ROOMS.index(parts[1]) if len(parts) > 1 else len(ROOMS)


@pytest.mark.parametrize("name", sorted(GRAPH))
def test_imports_point_down(name):
    if name == "keras_qusec":
        return
    for imported in GRAPH[name]:
        allowed = imported in ("keras_qusec",) or room_of(imported) <= room_of(name)
        assert allowed, f"{name} imports {imported}"
        assert imported != "keras_qusec" or name == "keras_qusec.commands"


def test_no_circle():
    done, above = set(), []

    def visit(name):
        assert name not in above, f"circle: {' -> '.join([*above[above.index(name) :], name])}"
        if name in done:
            return
        above.append(name)
        for imported in GRAPH[name]:
            visit(imported)
        done.add(above.pop())

    for name in GRAPH:
        visit(name)


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_no_hidden_import(path):
    text = path.read_text()
    assert "TYPE_CHECKING" not in text
    assert 'import_module(f"keras_qusec' not in text
    assert 'import_module("keras_qusec' not in text


def test_only_one_module_knows_the_backends():
    knowing = {
        name
        for name, path in NAMES.items()
        if any(f"import {kind}" in path.read_text() for kind in ("tensorflow", "jax", "torch"))
    }
    assert knowing == {"keras_qusec.backends", "keras_qusec.attacks.foolbox"}


def test_nothing_imports_the_command_line():
    above = [name for name, path in NAMES.items() if "keras_qusec_cli" in path.read_text()]
    assert above == ["keras_qusec.__main__"]
