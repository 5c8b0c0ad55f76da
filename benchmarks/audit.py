"""How often the audit errs: controls of which the answer is known, over several seeds.

    KERAS_BACKEND=torch python benchmarks/audit.py --seeds 0 1 2 3 4 --json FILE --page PAGE

The controls are those of the tests (`tests/audit_controls.py`): small networks on mnist5k, each
trained anew for every seed and audited on 100 images of its own. Rows that the file already has
are not measured again, so a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--controls", nargs="+", help="names; default all")
    parser.add_argument("--level", default="quick", choices=["quick", "full"])
    parser.add_argument("--json", required=True, help="file of rows, to be added to")
    parser.add_argument("--page", help="write this page from the rows, and measure nothing")
    options = parser.parse_args()
    path = Path(options.json)
    rows = json.loads(path.read_text()) if path.exists() else []
    if options.page:
        page_path = Path(options.page)
        page_path.write_text(page(rows))
        page_path.with_name("audit_rules.md").write_text(rules())
        return
    from audit_controls import CONTROLS

    for seed in options.seeds:
        for name in options.controls or CONTROLS:
            if any((row["control"], row["seed"]) == (name, seed) for row in rows):
                continue
            rows.append(measure(name, seed, options.level))
            # Written after each, under another name first: a stopped run loses nothing.
            part = path.with_suffix(".part")
            part.write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
            os.replace(part, path)
            failed = ", ".join(rows[-1]["failed"]) or "nothing"
            print(f"{name}, seed {seed}: {failed} ({rows[-1]['seconds']:.0f} s)", flush=True)


def measure(name: str, seed: int, level: str) -> dict:
    """The audit of one control with one seed as JSON values."""
    import keras
    from audit_controls import CONTROLS, audited

    from keras_qusec import datasets

    start = time.perf_counter()
    audit = audited(CONTROLS[name], datasets.mnist5k(), seed, level=level)
    content = audit.to_dict()
    return {
        "control": name,
        "seed": seed,
        "backend": keras.backend.backend(),
        "level": level,
        "right": list(CONTROLS[name].right),
        "failed": content["failed"],
        "not run": [c["identifier"] for c in content["checks"] if c["status"] == "not run"],
        "kind": content["kind"],
        "judged": content["judged accuracy"],
        "worst": content["worst accuracy"],
        "numbers": {
            c["identifier"]: {k: v and float(f"{v:.3g}") for k, v in c["numbers"].items()}
            for c in content["checks"]
        },
        "cost": {
            c["identifier"]: [c["gradients"], c["queries"], round(c["seconds"], 2)]
            for c in content["checks"]
        },
        "images": content["images"],
        "seconds": time.perf_counter() - start,
    }


def rules() -> str:
    """The checks and their rules as a table."""
    from keras_qusec.audit import CHECKS

    lines = ["<!-- Written by benchmarks/audit.py; do not edit. -->", ""]
    lines += ["| check | what is in order | rule | source |", "| --- | --- | --- | --- |"]
    for check in CHECKS:
        cells = (f"`{check.identifier}`", check.title, f"{check.rule}.", check.source)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def page(rows: list[dict]) -> str:
    """Controls x checks: in how many seeds each check failed, and the rates."""
    from keras_qusec.audit import CHECKS
    from keras_qusec.statistics import wilson_interval

    def share(count: int, n: int) -> str:
        low, high = wilson_interval(count, n)
        return f"{count} of {n} (95 %: {100 * low:.1f}-{100 * high:.1f} %)"

    identifiers = [check.identifier for check in CHECKS]
    positive = [row for row in rows if row["right"]]
    negative = [row for row in rows if not row["right"]]
    missed = [row for row in positive if not set(row["right"]) & set(row["failed"])]
    unseen = [row for row in positive if not row["failed"]]
    alarms = [row for row in negative if row["failed"]]
    seeds = len({row["seed"] for row in rows})
    fewest = min(Counter(row["control"] for row in rows).values())
    each = f"{seeds}" if fewest == seeds else f"{fewest} or {seeds}"
    lines = [
        "<!-- Written by benchmarks/audit.py; do not edit. -->",
        "",
        f"{len({r['control'] for r in rows})} controls, {each} seeds each (training, images and "
        f"audit), {len(rows)} audits, {rows[0]['images']} images, level {rows[0]['level']}, "
        f"{rows[0]['backend']}.",
        "",
        f"- **Miss**: a positive control of which no right check failed: "
        f"{share(len(missed), len(positive))}; of which nothing failed: "
        f"{share(len(unseen), len(positive))}.",
        f"- **False alarm**: a negative control of which any check failed: "
        f"{share(len(alarms), len(negative))}.",
        "",
    ]
    for title, some in (("Positive controls", positive), ("Negative controls", negative)):
        lines += [f"### {title}: in how many of {each} seeds each check failed", ""]
        lines += ["| | " + " | ".join(identifiers) + " |"]
        lines += ["| --- |" + " ---: |" * len(identifiers)]
        for name in dict.fromkeys(row["control"] for row in some):
            own = [row for row in some if row["control"] == name]
            cells = []
            for identifier in identifiers:
                count = sum(identifier in row["failed"] for row in own)
                idle = all(identifier in row["not run"] for row in own)
                cell = "-" if idle else str(count or "·")
                cells.append(f"**{cell}**" if identifier in own[0]["right"] else cell)
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines.append("")
    lines += ["Bold: the right checks of a control; -: not run; ·: never failed.", ""]
    lines += ["### Cost of each check, median over all audits", ""]
    lines += ["| check | gradients | queries | s |", "| --- | ---: | ---: | ---: |"]
    for identifier in identifiers:
        costs = [row["cost"][identifier] for row in rows if identifier not in row["not run"]]
        if costs:
            middle = [sorted(c[i] for c in costs)[len(costs) // 2] for i in range(3)]
            lines.append(f"| {identifier} | {middle[0]} | {middle[1]} | {middle[2]:.1f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
