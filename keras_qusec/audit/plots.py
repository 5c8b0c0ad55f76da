"""Pictures of an audit: loss surface, sizes of gradients, accuracy against attack budget."""

from __future__ import annotations

from typing import Any

import numpy as np

from keras_qusec.audit.evidence import JUDGED, Evidence
from keras_qusec.logits import log_odds
from keras_qusec.plots import CURVE_COLOUR, PAGE_WIDTH, THRESHOLD_COLOUR, pyplot

_GRID = 21


def audit_figure(evidence: Evidence) -> Any:
    """The three pictures side by side, to be closed by the caller."""
    plt = pyplot()
    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for axis, draw in zip(axes, _DRAWN.values(), strict=True):
        draw(axis, evidence)
    return figure


def audit_plots(evidence: Evidence) -> dict[str, Any]:
    """The three pictures alone, by what they show, each wide enough for a small screen."""
    plots = {}
    for caption, draw in _DRAWN.items():
        plots[caption], axis = pyplot().subplots(figsize=(PAGE_WIDTH, 3.6), layout="constrained")
        draw(axis, evidence)
    return plots


def _loss_surface(axis: Any, evidence: Evidence) -> None:
    """The loss of one image along its gradient and a random direction."""
    unbroken = np.flatnonzero(evidence.correct & ~evidence.judged)
    row = int((unbroken if len(unbroken) else evidence.rows)[0])
    clean, epsilon = evidence.x[row], evidence.epsilon
    gradient = evidence.model.ascent(clean[None], evidence.goal(np.array([row])))[0]
    along = np.sign(gradient)
    across = np.sign(evidence.rng().normal(size=clean.shape))
    shares = np.linspace(-1, 1, _GRID)
    moved = (
        clean
        + epsilon * shares[None, :, None].reshape(1, -1, *[1] * clean.ndim) * along
        + epsilon * shares[:, None, None].reshape(-1, 1, *[1] * clean.ndim) * across
    )
    moved = np.clip(moved, clean - epsilon, clean + epsilon)
    moved = np.clip(moved, *evidence.model.value_range).reshape(-1, *clean.shape).astype("float32")
    loss = log_odds(evidence.model.logits(moved), np.repeat(evidence.labels[row], len(moved)))
    ends = epsilon * shares
    grid = loss.reshape(_GRID, _GRID)
    drawn = axis.pcolormesh(ends, ends, grid, cmap="viridis", shading="nearest")
    axis.figure.colorbar(drawn, ax=axis, label="loss: log-odds against the label")
    if grid.min() < 0 < grid.max():
        axis.contour(ends, ends, grid, levels=[0], colors=[THRESHOLD_COLOUR])
    axis.plot(0, 0, "w+")
    axis.set_title(f"Loss around image {row}", fontsize=10)
    axis.set_xlabel("along the sign of the gradient")
    axis.set_ylabel("along a random direction")


def _gradient_sizes(axis: Any, evidence: Evidence) -> None:
    """How large the model's own gradient is on each image."""
    rows = evidence.rows
    sizes = evidence.on_each(
        rows,
        lambda x, goal: np.abs(evidence.model.ascent(x, goal)).reshape(len(x), -1).sum(axis=1),
    )
    usable = np.isfinite(sizes) & (sizes > 0)
    if usable.any():
        # The change of the loss if it were linear.
        axis.hist(np.log10(evidence.epsilon * sizes[usable]), bins=20, color=CURVE_COLOUR)
    axis.set_title(
        f"Gradient by image: zero on {int((sizes == 0).sum())}, not finite on "
        f"{int((~np.isfinite(sizes)).sum())} of {len(rows)}",
        fontsize=10,
    )
    axis.set_xlabel("log10 of epsilon times L1 size (change of the loss)")
    axis.set_ylabel("images")


def _accuracy_by_budget(axis: Any, evidence: Evidence) -> None:
    """What is left of the accuracy after attacks of different cost."""
    correct = evidence.correct
    n = len(correct)
    points = []
    for attack in evidence.evaluation.attacks:
        if attack.startswith("pgd at") or attack == "fmn-linf":
            continue
        results = [r for r in evidence.evaluation.results if r.attack == attack]
        passes = sum(float(r.queries.sum() + r.gradients.sum()) for r in results) / n
        points.append((max(passes, 1.0), 100 * (correct & ~evidence.found(attack)).mean(), attack))
    for place, (passes, accuracy, attack) in enumerate(sorted(points)):
        marker = "D" if attack == JUDGED else "o"
        axis.plot(passes, accuracy, marker, color=CURVE_COLOUR)
        name = f"{attack} (judged)" if attack == JUDGED else attack
        # Below and farther below in turn, since neighbours are often level.
        offset = (0, (-16, -30, -44)[place % 3] if accuracy > 50 else (8, 22, 36)[place % 3])
        axis.annotate(
            name, (passes, accuracy), xytext=offset, textcoords="offset points", fontsize=9.5,
            ha="center", arrowprops={"arrowstyle": "-", "alpha": 0.3},
        )  # fmt: skip
    axis.margins(x=0.15)
    worst = 100 * (correct & ~evidence.worst).mean()
    axis.axhline(100 * correct.mean(), color="0.6", linewidth=1, label="clean images")
    axis.axhline(worst, color=THRESHOLD_COLOUR, linestyle="--", label="worst case found")
    axis.set(xscale="log", xlabel="forward and backward passes per image", ylim=(-2, 102))
    # Numbers as they are: the exponents of powers are too small to read.
    axis.xaxis.set_major_formatter("{x:g}")
    axis.xaxis.set_minor_formatter("")
    axis.set_ylabel("accuracy in %")
    axis.set_title("Accuracy against attack budget", fontsize=10)
    axis.grid(alpha=0.3)
    axis.legend(fontsize=9.5, frameon=False)


# What each picture shows, in the order in which they stand.
_DRAWN = {
    "The loss of one image that stands, around it.": _loss_surface,
    "Sizes of the model's own input gradients.": _gradient_sizes,
    "What attacks of different cost leave.": _accuracy_by_budget,
}
