"""Faults planted one at a time in the files that hold numbers: which of them do the tests notice?

Each fault changes one operator, comparison, number or condition of a copy of the package, and the
tests of that file's room are run on the copy. What they do not notice is a missing test, or a fault
that changes nothing anybody could see.

    python benchmarks/mutation.py --each 8 --seed 0 --jobs 2
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
# Tests of each file in `tests/`, the quickest first.
TESTS = {
    "quantization/quantize.py": ["quantization"],
    "quantization/closed_forms.py": ["quantization"],
    "quantization/loop.py": ["quantization"],
    "quantization/thresholds.py": ["quantization", "defenses/test_quantizers.py"],
    "norms.py": [
        "test_norms.py", "attacks/test_minimum_norm.py", "attacks/test_gradient_attack.py",
    ],
    "attacks/gradient_attack.py": ["attacks/test_gradient_attack.py", "evaluation/test_run.py"],
    "attacks/apgd.py": ["attacks/test_apgd.py"],
    "attacks/minimum_norm.py": ["attacks/test_minimum_norm.py"],
    "attacks/fab.py": ["attacks/test_minimum_norm.py"],
    "attacks/fmn.py": ["attacks/test_minimum_norm.py"],
    "attacks/sigma_zero.py": ["attacks/test_minimum_norm.py"],
    "attacks/square.py": ["attacks/test_square.py"],
    "attacks/reachable_levels.py": ["attacks/test_reachable_levels.py"],
    "attacks/cheapest_levels.py": ["attacks/test_reachable_levels.py"],
    "attacks/jsma.py": ["attacks/test_jsma.py"],
    "attacks/objective.py": ["attacks/test_objective.py", "attacks/test_apgd.py"],
    "attacks/attacked_model.py": [
        "attacks/test_gradient_attack.py", "attacks/test_random_draws.py",
        "defenses/test_rejection.py", "attacks/test_reachable_levels.py",
    ],
    "attacks/classifier.py": ["attacks/test_classifier.py"],
    "verify.py": ["test_verify.py", "test_integer_inputs.py"],
    "results.py": [
        "report/test_measurements.py", "evaluation/test_examples.py", "evaluation/test_run.py",
    ],
    "evaluation/run.py": ["evaluation/test_threat_models.py", "evaluation/test_run.py"],
    "evaluation/ensemble_parts.py": ["attacks/test_ensemble.py", "evaluation/test_run.py"],
    "evaluation/record.py": ["evaluation/test_run.py", "attacks/test_ensemble.py"],
    "report/measurements.py": [
        "report/test_measurements.py", "report/test_certificates.py", "report/test_report.py",
    ],
    "training/step.py": ["training/test_callback.py", "test_integer_inputs.py"],
    "training/validation.py": ["training/test_callback.py"],
    "audit/evidence.py": ["audit/test_each_check.py"],
    "audit/distances.py": ["audit/test_each_check.py"],
    "audit/finite_differences.py": ["audit/test_each_check.py"],
    "audit/rising_accuracy.py": ["audit/test_each_check.py"],
    "commands.py": ["test_cli.py"],
    "image_folders.py": ["test_datasets.py"],
    "integer_inputs.py": ["test_integer_inputs.py"],
}  # fmt: skip
SECONDS = 420


class Fault(NamedTuple):
    """One change of a file: from one place to another, what stands there instead."""

    path: str
    line: int
    start: int
    end: int
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.path}:{self.line}: {self.before!r} -> {self.after!r}"


_SWAPS: dict[type, str] = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==",
    ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.And: "or", ast.Or: "and",
    ast.BitAnd: "|", ast.BitOr: "&",
}  # fmt: skip
_NAMES = {
    "maximum": "minimum", "minimum": "maximum", "argmax": "argmin", "argmin": "argmax",
    "max": "min", "min": "max", "all": "any", "any": "all", "floor": "ceil",
}  # fmt: skip


def faults_of(path: Path, name: str) -> list[Fault]:
    """All faults that can be planted in a file; messages, types and docstrings stay."""
    source = path.read_text()
    starts = [0]
    for line in source.splitlines(keepends=True):
        starts.append(starts[-1] + len(line.encode()))
    code = source.encode()

    def place(line: int, column: int) -> int:
        return starts[line - 1] + column

    def fault(line: int, start: int, end: int, after: str) -> Fault:
        return Fault(name, line, start, end, code[start:end].decode(), after)

    def between(left: ast.AST, right: ast.AST, after: str) -> Iterator[Fault]:
        start, end = (
            place(left.end_lineno, left.end_col_offset),
            place(right.lineno, right.col_offset),
        )
        text = code[start:end]
        operator = text.strip(b" ()\n")
        if operator and b"#" not in text:
            at = start + text.index(operator)
            yield fault(left.end_lineno, at, at + len(operator), after)

    def walk(node: ast.AST) -> Iterator[Fault]:
        if isinstance(node, (ast.Raise, ast.JoinedStr, ast.Import, ast.ImportFrom, ast.Assert)):
            return
        if isinstance(node, ast.Compare) and type(node.ops[0]) in _SWAPS:
            yield from between(node.left, node.comparators[0], _SWAPS[type(node.ops[0])])
        if isinstance(node, ast.BinOp) and type(node.op) in _SWAPS:
            text = isinstance(node.left, ast.Constant) and isinstance(node.left.value, str)
            if not text:
                yield from between(node.left, node.right, _SWAPS[type(node.op)])
        if isinstance(node, ast.BoolOp):
            yield from between(node.values[0], node.values[1], _SWAPS[type(node.op)])
        if isinstance(node, ast.Constant) and type(node.value) in (int, float):
            after = repr(node.value + 1 if isinstance(node.value, int) else 2 * node.value + 0.5)
            start, end = (
                place(node.lineno, node.col_offset),
                place(node.end_lineno, node.end_col_offset),
            )
            yield fault(node.lineno, start, end, after)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Not, ast.Invert)):
            start = place(node.lineno, node.col_offset)
            yield fault(node.lineno, start, place(node.operand.lineno, node.operand.col_offset), "")
        if isinstance(node, ast.Attribute) and node.attr in _NAMES:
            end = place(node.end_lineno, node.end_col_offset)
            yield fault(node.end_lineno, end - len(node.attr), end, _NAMES[node.attr])
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "decorator_list", "bases"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from walk(child)

    return list(walk(ast.parse(source)))


def copied() -> Path:
    """A copy of the package and its tests."""
    folder = Path(tempfile.mkdtemp(prefix="mutation-"))
    for name in ("keras_qusec", "keras_qusec_cli", "tests"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md"):
        shutil.copy(ROOT / name, folder / name)
    return folder


def is_caught(fault: Fault, folder: Path) -> bool:
    """Whether the tests fail on a copy with the fault."""
    path = folder / "keras_qusec" / fault.path
    code = path.read_bytes()
    path.write_bytes(code[: fault.start] + fault.after.encode() + code[fault.end :])
    environment = {
        **os.environ, "KERAS_BACKEND": "torch", "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
    }  # fmt: skip
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider",
             *(f"tests/{name}" for name in TESTS[fault.path])],
            cwd=folder, env=environment, capture_output=True, timeout=SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return True
    finally:
        path.write_bytes(code)
    return done.returncode != 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--each", type=int, default=8, help="faults in each file (default: 8)")
    parser.add_argument("--seed", type=int, default=0, help="of the choice (default: 0)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default: 2)")
    parser.add_argument("--files", nargs="+", default=list(TESTS), help="of keras_qusec")
    options = parser.parse_args()
    chosen: list[Fault] = []
    for name in options.files:
        found = faults_of(ROOT / "keras_qusec" / name, name)
        order = random.Random(f"{options.seed} {name}")
        chosen += order.sample(found, min(options.each, len(found)))
    folders: SimpleQueue[Path] = SimpleQueue()
    for _ in range(options.jobs):
        folders.put(copied())
    planted, caught = Counter(), Counter()

    def run(fault: Fault) -> tuple[Fault, bool]:
        folder = folders.get()
        try:
            return fault, is_caught(fault, folder)
        finally:
            folders.put(folder)

    with ThreadPoolExecutor(options.jobs) as pool:
        for fault, noticed in pool.map(run, chosen):
            planted[fault.path] += 1
            caught[fault.path] += noticed
            print("caught  " if noticed else "SURVIVED", fault, flush=True)
    while not folders.empty():
        shutil.rmtree(folders.get())
    print("\n| file | planted | caught |\n| --- | ---: | ---: |")
    for name in options.files:
        print(f"| `{name}` | {planted[name]} | {caught[name]} |")
    share = 100 * sum(caught.values()) / max(1, sum(planted.values()))
    print(f"| all | {sum(planted.values())} | {sum(caught.values())} ({share:.0f} %) |")


if __name__ == "__main__":
    main()
