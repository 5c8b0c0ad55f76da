"""reproduce: a figure of the paper, measured again and kept."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence

import keras

from keras_qusec import datasets
from keras_qusec.attacks.foolbox import import_foolbox
from keras_qusec.checks import one_of, whole_number
from keras_qusec.progress import Progress, shown
from keras_qusec.reproduction.experiment import Experiment
from keras_qusec.reproduction.registry import FIGURES
from keras_qusec.reproduction.results import Reproduction, Row
from keras_qusec.results import Example
from keras_qusec.version import __version__


def reproduce(
    figure: str,
    data: str | os.PathLike = "mnist",
    *,
    quick: bool = False,
    seeds: Sequence[int] = (0,),
    folder: str | os.PathLike | None = None,
    progress: bool | Progress | None = None,
) -> Reproduction:
    """Measure a figure of the paper again: its attack, and the worst case beside it.

    The paper's network; Adam (CleverHans' optimizer, the paper names none), learning rate 0.001,
    batch 128, 6 epochs; 1,000 test images are attacked. The worst case is that of the standard
    evaluation.

    Args:
        figure: name of `keras_qusec.reproduction.FIGURES`, such as ``"figure-7"``.
        data: name of a data set, or the path of an ``.npz`` file.
        quick: one epoch, 20 images and fewer settings, to see that all of it runs.
        seeds: of training and attack; several show the spread.
        folder: where trained models and finished attacks are kept. Called again, it goes on
            from there, and figures share their models. Default: nowhere.
        progress: as in `evaluate_robustness`; the share done is known of each training and attack
            alone, so that it stands in the text.

    Returns:
        `Reproduction`.

    Raises:
        ValueError: for an unknown figure, or a folder of other settings.
        ImportError: without the extra ``keras-qusec[evaluate]``.

    Source: Ali et al. 2019, QuSecNets; the text of each figure says what was read how.

    Example: ``print(reproduce("figure-7", "mnist5k", quick=True))``
    """
    import_foolbox()
    one = FIGURES[one_of(figure, "figure", FIGURES)]
    loaded = datasets.in_mixed_order(datasets.load(data))
    listed = [whole_number(seed, "seeds", least=0) for seed in seeds]
    if not listed:
        raise ValueError("Expected at least one of seeds. Received: none. One is seeds=(0,).")
    rows: list[Row] = []
    gallery: list[Example] = []
    logs: dict[str, dict[str, list[float]]] = {}
    backends: set[str] = set()
    with tempfile.TemporaryDirectory() as temporary, shown(progress, figure) as tell:
        for place, seed in enumerate(listed):

            def part(text: str, share: float | None, seed: int = seed) -> None:
                # How many networks are left to train or to read, nobody knows in advance.
                done = "" if share is None else f" {100 * share:.0f} %"
                of_seed = f", seed {seed}" if len(listed) > 1 else ""
                tell(f"{figure}{of_seed}: {text}{done}", None)

            experiment = Experiment(
                loaded, str(folder or temporary), seed, quick, part, first=place == 0
            )
            rows += one.rows(experiment)
            gallery = gallery or one.gallery(experiment)
            logs = logs or one.logs(experiment)
            backends |= experiment.backends
        tell(f"{figure}: done", 1.0)
    return Reproduction(
        figure=figure,
        title=one.title,
        claim=one.claim,
        axis=one.axis,
        rows=rows,
        made_with={
            "data": loaded.name,
            "training images": len(loaded.x_train),
            "test images attacked": ", ".join(map(str, sorted({row.images for row in rows}))),
            **one.settings(experiment),
            "seeds": ", ".join(map(str, listed)),
            "worst case": one.evidence,
            "keras-qusec": __version__,
            "keras": keras.__version__,
            "backend": keras.backend.backend(),
            **(
                {"networks trained with": ", ".join(sorted(backends))}
                if backends - {keras.backend.backend()}
                else {}
            ),
            **({"quick": "yes, too little for conclusions"} if quick else {}),
            **({"remarks": one.remarks} if one.remarks else {}),
        },
        gallery=gallery,
        logs=logs,
    )
