"""compare: train each defence on the same network, attack it, and put all in one table."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_qusec import datasets, files, parallel
from keras_qusec.attacks import AttackedModel
from keras_qusec.attacks.foolbox import import_foolbox
from keras_qusec.certification.box import behind_hard_quantizer
from keras_qusec.certification.certify import EFFORTS, Prover
from keras_qusec.checks import one_of, whole_number
from keras_qusec.comparison import contenders
from keras_qusec.comparison.contenders import Training
from keras_qusec.comparison.results import Comparison, Measured
from keras_qusec.datasets import Dataset
from keras_qusec.defenses import RejectingClassifier
from keras_qusec.digests import code_digest, digest
from keras_qusec.evaluation import evaluate_robustness
from keras_qusec.evaluation import threat_models as threats
from keras_qusec.progress import Progress, shown
from keras_qusec.version import __version__

# Under which defences are attacked.
THREAT_MODELS = ("white-box", "adaptive", "black-box")

# Rounds of the timing of `predict`, in which both models take turns.
_ROUNDS = 7


class Settings(NamedTuple):
    """What one unit of a comparison needs, besides its defence; all of it can be sent.

    Attributes:
        epsilons: radii, L-infinity.
        attacks: of the evaluation.
        images: number of test images.
        epochs: epochs of a classifier.
        seed: seed of all that is random.
        folder: where finished work is kept.
        threat_models: under which each is attacked.
        prove: effort of proofs behind hard quantizers, or None.
    """

    epsilons: tuple[float, ...]
    attacks: tuple[Any, ...]
    images: int
    epochs: int
    seed: int
    folder: str
    threat_models: tuple[str, ...] = THREAT_MODELS
    prove: str | None = None

    def training(self, data: Dataset) -> Training:
        """The settings of the contenders' training."""
        return Training(data, self.epsilons[-1], self.epochs, self.seed)

    def source_training(self, data: Dataset) -> Training:
        """Those of the network that black-box examples are made on: another seed."""
        return self.training(data)._replace(seed=self.seed + 1)


def compare(
    data: str | os.PathLike = "mnist5k",
    defenses: Sequence[str] | None = None,
    *,
    epsilons: Sequence[float] = (0.1, 0.2, 0.3),
    attacks: Any = ("fgsm", "standard"),
    images: int = 100,
    epochs: int = 4,
    threat_models: Sequence[str] = THREAT_MODELS,
    prove: str | None = None,
    seed: int = 0,
    folder: str | os.PathLike | None = None,
    n_jobs: int | None = None,
    progress: bool | Progress | None = None,
) -> Comparison:
    """Train defences on the paper's network, the same data and seed, and attack each.

    Each is attacked white-box, adaptively, and by examples made on an undefended network of
    another seed (black-box), or under other threat models.

    Args:
        data: name of a data set, or the path of an ``.npz`` file.
        defenses: names of `keras_qusec.comparison.names`, default all.
        epsilons: radii in rising order, L-infinity; the largest is that of training.
        attacks: a list of attacks as in `evaluate_robustness`.
        images: test images attacked, a sample that has each class at its share.
        epochs: epochs of each classifier.
        threat_models: names as in `evaluate_robustness`; those that use a source get the
            undefended network of another seed.
        prove: effort of proofs as in `evaluate_robustness`, for defences with a hard quantizer in
            front, or None. Behind others proofs are possible and take minutes an image.
        seed: seed of all that is random.
        folder: where trained models and finished evaluations are kept. Called again, a defence
            that is there already is not trained again; one is a unit of its own, so that
            adding one trains that one alone. Default: nowhere.
        n_jobs: processes, over joblib; None for one, or for what `joblib.parallel_config` says.
        progress: as in `evaluate_robustness`.

    Returns:
        `Comparison`.

    Raises:
        ValueError: for unusable arguments, or a folder of other settings.
        ImportError: without the extra ``keras-qusec[evaluate]``.

    Example: ``print(compare("mnist5k", ["undefended", "constant"]))``
    """
    import_foolbox()
    chosen = list(contenders.names() if defenses is None else defenses)
    for name in chosen:
        contenders.get(name)
    if not chosen or len(set(chosen)) < len(chosen):
        raise ValueError(
            f"Expected defenses, each once. Received: {defenses!r}. The names are "
            f"{', '.join(contenders.names())}."
        )
    for name in threat_models:
        threats.get(name)
    for name, value in {"images": images, "epochs": epochs}.items():
        whole_number(value, name)
    whole_number(seed, "seed", least=0)
    if prove is not None:
        one_of(prove, "prove", tuple(EFFORTS), hint="None proves nothing.")
    loaded = datasets.load(data)
    with tempfile.TemporaryDirectory() as temporary, shown(progress, "training") as report:
        settings = Settings(
            tuple(map(float, np.ravel(epsilons))), tuple(attacks), images, epochs, seed,
            str(folder or temporary), tuple(map(str, threat_models)), prove,
        )  # fmt: skip
        report("source of black-box examples", 0.0)
        source = settings.source_training(loaded)
        trained("source", settings.folder, source, contenders.get("undefended").make)
        measured: dict[str, Measured] = {}
        known = tuple(threats.get(name) for name in threat_models)
        calls = [(name, settings, contenders.get(name), loaded, known) for name in chosen]
        if parallel.is_parallel(n_jobs):
            outcomes = parallel.called(compared, calls, n_jobs)
        else:
            outcomes = (compared(*call) for call in calls)
        report(chosen[0], 1 / (2 + len(chosen)))
        for one in outcomes:
            measured[one.name] = one
            left = [name for name in chosen if name not in measured]
            report(left[0] if left else "done", (1 + len(measured)) / (2 + len(chosen)))
    made_with = {
        "data": loaded.name,
        "test images": len(loaded.x_test),
        "training images": len(loaded.x_train),
        "epochs": epochs,
        "seed": seed,
    }
    return Comparison([measured[name] for name in chosen], made_with)


def compared(
    name: str,
    settings: Settings,
    contender: contenders.Contender,
    data: Dataset,
    known: Sequence[threats.ThreatModel],
) -> Measured:
    """Train, time and evaluate one defence, or read what is finished.

    Args:
        name: its name.
        settings: of the comparison.
        contender: how it is made.
        data: the data set.
        known: the threat models, which another process may not know.
    """
    for threat in known:
        threats.register(threat)
    folder = settings.folder
    model, seconds = trained(name, folder, settings.training(data), contender.make)
    source, _ = trained("source", folder, settings.source_training(data), contender.make)
    x, y = data.sample(settings.images, seed=settings.seed)
    transferred = any(threats.get(name).uses_source for name in settings.threat_models)
    proves = settings.prove and _proves(model, x)
    evaluated = evaluate_robustness(
        {name: model}, x, y, attacks=list(settings.attacks), epsilons=settings.epsilons,
        threat_models=settings.threat_models,
        source_model={"undefended, another seed": source} if transferred else None,
        seed=settings.seed,
        class_names=data.class_names,
        prove={name: settings.prove} if proves else None,
        resume_dir=Path(folder) / f"{name}-evaluation", progress=False,
    )  # fmt: skip
    return Measured(
        name=name,
        settings=contender.settings,
        report=evaluated,
        training_seconds=seconds,
        inference=_inference_ratio(model, source, x),
        parameters=model.count_params(),
    )


def _proves(model: keras.Model, x: np.ndarray) -> bool:
    """Whether a defence stands behind a hard quantizer and all its layers have rules."""
    try:
        attacked = AttackedModel(model)
        return behind_hard_quantizer(attacked, x[:1]) and bool(Prover(attacked, x[:8]))
    except ValueError:
        return False


def trained(
    name: str, folder: str, training: Training, make: Callable[[Training], keras.Model]
) -> tuple[keras.Model, float]:
    """A trained model and the seconds it took, from disk or trained now."""
    path, description = Path(folder) / f"{name}.keras", Path(folder) / f"{name}.json"
    data = training.data
    identity = {
        "data": digest(data.x_train.tobytes(), data.y_train.tobytes(), data.x_test.tobytes()),
        "epsilon": training.epsilon,
        "epochs": training.epochs,
        "seed": training.seed,
        "keras-qusec": __version__,
        "code": "" if name == "source" else code_digest(make),
    }
    if path.exists() and description.exists():
        earlier = description_of(description)
        if earlier["identity"] == identity:
            return keras.saving.load_model(path, compile=False), float(earlier["seconds"])
        different = [
            key for key, value in identity.items() if earlier["identity"].get(key) != value
        ]
        raise ValueError(
            f"Expected a folder of the same comparison. Received: {folder}, whose {name!r} differs "
            f"in {', '.join(different)}. Give a new folder, or the settings of the earlier one."
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    start = time.perf_counter()
    model = make(training)
    seconds = time.perf_counter() - start
    model.save(path)
    history = getattr(getattr(model, "history", None), "history", {})
    log = {key: [float(value) for value in values] for key, values in history.items()}
    files.write(
        {
            "identity": identity, "seconds": seconds, "log": log,
            "backend": keras.backend.backend(),
        },
        description,
    )  # fmt: skip
    # As it will be after a restart: what is evaluated is what was saved.
    return keras.saving.load_model(path, compile=False), seconds


def description_of(path: Path) -> dict[str, Any]:
    """What a trained network of a folder was made with, how long it took, and its log.

    Raises:
        ValueError: for a file that is missing, damaged or of another kind.
    """
    expected = "the description of a trained network"
    content = files.read(path, expected)
    if not isinstance(content, dict) or not {"identity", "seconds", "log"} <= set(content):
        raise ValueError(
            f"Expected {expected}. Received: {path}, which has other content. Delete it and the "
            ".keras file beside it; the network is then trained again."
        )
    return content


def _inference_ratio(model: keras.Model, floor: keras.Model, x: np.ndarray) -> float:
    """The median time of `predict`, in multiples of another model's; both take turns.

    Of a classifier that may reject, the time of its rejections is part of it.
    """
    # A batch as large as those of `predict` usually are, so that its overhead does not decide.
    x = np.resize(x, (256, *x.shape[1:]))
    times: dict[int, list[float]] = {0: [], 1: []}
    for _ in range(_ROUNDS):
        for place, one in enumerate((model, floor)):
            start = time.perf_counter()
            one.predict(x, verbose=0)
            if isinstance(one, RejectingClassifier):
                keras.ops.convert_to_numpy(one.rejection(x))
            times[place].append(time.perf_counter() - start)
    # The first round compiles.
    return float(np.median(times[0][1:]) / np.median(times[1][1:]))
