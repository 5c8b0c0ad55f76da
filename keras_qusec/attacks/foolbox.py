"""Foolbox, both ways: its attacks run here, and Keras models run there."""

from __future__ import annotations

import contextlib
import math
import os
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import keras
import numpy as np

from keras_qusec import norms
from keras_qusec.attacks.attacked_model import AttackedModel
from keras_qusec.attacks.base import Attack, BatchSearch, arguments
from keras_qusec.attacks.classifier import Classifier, Counter
from keras_qusec.attacks.goal import Goal
from keras_qusec.attacks.starting_points import starting_points
from keras_qusec.backends import backend
from keras_qusec.checks import number, whole_number
from keras_qusec.digests import digest

Tensor = Any

# Foolbox's random numbers come from generators that all threads share.
_ONE_AT_A_TIME = threading.Lock()


def import_foolbox() -> Any:
    """Foolbox, or an ImportError that names the extra to install."""
    # Foolbox imports GitPython, which fails without a git binary unless told to be quiet.
    os.environ.setdefault("GIT_PYTHON_REFRESH", "quiet")
    try:
        import foolbox
    except ImportError as error:
        raise ImportError(
            'This attack needs Foolbox. Install it with: pip install "keras-qusec[evaluate]"'
        ) from error
    return foolbox


class Facts(NamedTuple):
    """What is known of one of Foolbox's attacks; see `Attack` for the names.

    Attributes:
        needs_start: wants adversarial images to start from.
    """

    cost: str = ""
    uses_gradients: bool = True
    is_random: bool = True
    can_be_targeted: bool = True
    needs_start: bool = False
    trial_radii: tuple[float, ...] = ()


_QUERIES = Facts(uses_gradients=False)
# By the name of the class or of one that it derives from; all others have the defaults of Facts.
_FACTS: dict[str, Facts] = {
    "L2CarliniWagnerAttack": Facts("binary_search_steps x steps gradients", is_random=False),
    "EADAttack": Facts("binary_search_steps x steps gradients", is_random=False),
    "DDNAttack": Facts("1 gradient a step", is_random=False),
    "DeepFoolAttack": Facts(
        "1 gradient a class and step", is_random=False, can_be_targeted=False
    ),
    "BoundaryAttack": Facts("1 query a step", uses_gradients=False, needs_start=True),
    "HopSkipJumpAttack": Facts(
        "100 queries a step and more", uses_gradients=False, needs_start=True
    ),
    "SaltAndPepperNoiseAttack": Facts("1 query a step", uses_gradients=False),
    "L2ClippingAwareRepeatedAdditiveGaussianNoiseAttack": Facts(
        "1 query a draw and radius", uses_gradients=False,
        trial_radii=tuple(np.geomspace(0.02, 1.0, 12)),
    ),
    "BaseAdditiveNoiseAttack": _QUERIES,
    "BaseRepeatedAdditiveNoiseAttack": _QUERIES,
    "BinarizationRefinementAttack": _QUERIES,
    "BinarySearchContrastReductionAttack": _QUERIES,
    "DatasetAttack": _QUERIES,
    "GaussianBlurAttack": _QUERIES,
    "GenAttack": _QUERIES,
    "InversionAttack": _QUERIES,
    "L2ContrastReductionAttack": _QUERIES,
    "LinearSearchBlendedUniformNoiseAttack": _QUERIES,
    "LinearSearchContrastReductionAttack": _QUERIES,
    "PointwiseAttack": _QUERIES,
}  # fmt: skip


class FoolboxAttack(Attack):
    """Any Foolbox attack, run here.

    Args:
        attack: a `foolbox.attacks.base.MinimizationAttack` or `FixedEpsilonAttack`.
        restarts: how often it is run on each image.

    Raises:
        ImportError: without the extra ``keras-qusec[evaluate]``.
        ValueError: for anything else.

    Example:

    >>> from keras_qusec.attacks.foolbox import FoolboxAttack, import_foolbox
    >>> FoolboxAttack(import_foolbox().attacks.L2DeepFoolAttack()).norm
    'l2'
    """

    def __init__(self, attack: Any, *, restarts: int = 1) -> None:
        base = import_foolbox().attacks.base
        if isinstance(attack, base.Repeated):
            restarts, attack = restarts * attack.times, attack.attack
        if not isinstance(attack, (base.MinimizationAttack, base.FixedEpsilonAttack)):
            raise ValueError(
                f"Expected a Foolbox attack that minimizes a distance or stays within an epsilon. "
                f"Received: {attack!r}."
            )
        _check_settings(attack)
        self.attack = attack
        self.minimizes = isinstance(attack, base.MinimizationAttack)
        self.norm = _norm_of(attack)
        self.restarts = whole_number(restarts, "restarts")
        self.facts = next(
            (_FACTS[kind.__name__] for kind in type(attack).__mro__ if kind.__name__ in _FACTS),
            Facts(),
        )
        for name in ("cost", "uses_gradients", "is_random", "can_be_targeted", "trial_radii"):
            setattr(self, name, getattr(self.facts, name))

    def __repr__(self) -> str:
        return f"{type(self.attack).__name__}({arguments(self.settings())})"

    def settings(self) -> dict[str, Any]:
        own = {name.strip("_"): value for name, value in vars(self.attack).items()}
        return {**own, "restarts": self.restarts}

    def on_batch(self, model: AttackedModel, x: np.ndarray, goal: Goal) -> BatchSearch:
        """The attack on a batch, whose other images it may start from."""

        def search(rows: np.ndarray, epsilon: float | None, seed: int) -> np.ndarray:
            images, chosen, starts = x[rows].copy(), np.arange(len(rows)), None
            if self.facts.needs_start:
                starts, chosen = starting_points(model, x, goal, rows, seed)
                starts = starts[chosen]
            if len(chosen):
                part = goal.take(rows[chosen])
                images[chosen] = self._run(model, images[chosen], part, epsilon, seed, starts)
            return images

        return search

    def run(
        self, model: AttackedModel, x: np.ndarray, goal: Goal, *, epsilon: float | None, seed: int
    ) -> np.ndarray:
        return self.on_batch(model, x, goal)(np.arange(len(x)), epsilon, seed)

    def _run(
        self,
        model: AttackedModel,
        x: np.ndarray,
        goal: Goal,
        epsilon: float | None,
        seed: int,
        starts: np.ndarray | None,
    ) -> np.ndarray:
        criteria = import_foolbox().criteria
        if goal.targets is None:
            criterion = criteria.Misclassification(to_tensor(goal.labels))
        else:
            criterion = criteria.TargetedMisclassification(to_tensor(goal.targets))
        wrapped = model.kept("foolbox", lambda: foolbox_model(model))
        # Always pixels in [0, 1]: many attacks have constants that suit no other range, such as
        # step sizes, weights of a loss against a distance, and HopSkipJump's clip.
        low, high = model.value_range
        rescaled = (low, high) != (0.0, 1.0)
        if epsilon is not None and rescaled and self.norm != "l0":
            epsilon = epsilon / (high - low)
        settings: dict[str, Any] = {} if self.minimizes else {"epsilon": epsilon}
        images, starts = to_tensor(x), None if starts is None else to_tensor(starts)
        if rescaled:
            wrapped = wrapped.transform_bounds((0.0, 1.0))
            images = (images - low) / (high - low)
            starts = None if starts is None else (starts - low) / (high - low)
        if starts is not None:
            settings["starting_points"] = starts
        # Foolbox draws for a whole batch; another batch gets other numbers.
        with _ONE_AT_A_TIME, seeded((seed + int(digest(x)[:7], 16)) % 2**31):
            result = self.attack.run(wrapped, images, criterion, **settings)
        adversarial = np.array(keras.ops.convert_to_numpy(result))
        if rescaled:
            # Foolbox's sign of failure is an image of zeros, which scaling would hide; an
            # image of NaN never counts either.
            failed = (adversarial == 0).all(axis=tuple(range(1, adversarial.ndim)))
            adversarial[failed] = np.nan
            adversarial = adversarial * np.float32(high - low) + np.float32(low)
        return adversarial


def named_foolbox_attack(name: str) -> Callable[..., Attack]:
    """A function of settings that makes one of Foolbox's attacks by the name of its class."""

    def make(**settings: Any) -> Attack:
        return FoolboxAttack(getattr(import_foolbox().attacks, name)(**settings))

    return make


# Settings that are counts, and those that are lengths or weights: Foolbox takes any number, and
# an attack of no steps finds nothing without a word.
_COUNTS = (
    "steps", "repeats", "times", "binary_search_steps", "candidates", "population", "directions",
    "initial_gradient_eval_steps", "max_gradient_eval_steps", "num_translations", "num_rotations",
)  # fmt: skip
_LENGTHS = (
    "stepsize", "rel_stepsize", "abs_stepsize", "initial_stepsize", "max_stepsize", "initial_const",
    "init_epsilon", "spherical_step", "source_step", "lr",
)  # fmt: skip


def _check_settings(attack: Any) -> None:
    """Raise a ValueError for settings with which an attack does nothing."""
    for name, value in vars(attack).items():
        plain = name.strip("_")
        if plain in _COUNTS and value is not None:
            whole_number(value, plain)
        if plain in _LENGTHS and value is not None and not isinstance(value, str):
            number(value, plain, above=0)


def _norm_of(attack: Any) -> str:
    constraint = getattr(attack, "constraint", None)  # HopSkipJump's distance is another
    if constraint in ("linf", "l2"):
        return str(constraint)
    try:
        order = attack.distance.p
    except (AttributeError, ValueError):  # Foolbox wants it chosen when the attack is called
        order = 2
    name = "linf" if order == math.inf else f"l{order:g}"
    return name if name in norms.names() else "l2"


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Foolbox's random numbers from a seed, and the user's generators as they were after it.

    TensorFlow's global seed cannot be read, so there it stays set.
    """
    name = keras.backend.backend()
    python, numpy = random.getstate(), np.random.get_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    try:
        if name == "torch":
            import torch

            with torch.random.fork_rng():
                torch.manual_seed(seed)
                yield
        elif name == "jax":
            import eagerpy
            import jax

            key, eagerpy.JAXTensor.key = eagerpy.JAXTensor.key, jax.random.PRNGKey(seed % 2**31)
            try:
                yield
            finally:
                eagerpy.JAXTensor.key = key
        else:
            import tensorflow as tf

            tf.random.set_seed(seed)
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)


def foolbox_model(
    model: keras.Model | Classifier,
    value_range: tuple[float, float] = (0.0, 1.0),
    *,
    outputs: str | None = None,
) -> Any:
    """Wrap a Keras model for Foolbox's attacks, compiled where the backend compiles.

    Logits are attacked, also of a model that ends in a softmax. Gradients reach the images
    only: none is computed for the weights, which on a small CNN saves a third of the time.
    The model runs in inference mode. Surrogate gradients count that are in force when it is
    wrapped (`keras_qusec.defenses.surrogate_gradients`). A model whose weights change must be
    wrapped again.

    Args:
        model: built Keras model, images ``(n, ...)`` to logits or probabilities
            ``(n, classes)``; or a `Classifier`, whose counter then counts.
        value_range: smallest and largest pixel value an attack may use.
        outputs: ``"logits"`` or ``"probabilities"``, for a model whose graph does not say.

    Returns:
        A `foolbox.models.Model` of the current Keras backend.

    Raises:
        ImportError: without the extra ``keras-qusec[evaluate]``.
        ValueError: if it is not known what the model's outputs are.

    Example:

    >>> from keras_qusec.attacks.foolbox import foolbox_model
    >>> model = keras.Sequential([keras.Input((4, 4, 1)), keras.layers.Flatten()])
    >>> foolbox_model(model).bounds
    Bounds(lower=0.0, upper=1.0)
    """
    attacked = model
    if not isinstance(attacked, Classifier):
        attacked = AttackedModel(attacked, value_range, outputs=outputs)
    if not isinstance(attacked, AttackedModel):
        return _asked(import_foolbox(), attacked)
    wrap = {"tensorflow": _tensorflow, "jax": _jax, "torch": _torch}[keras.backend.backend()]
    return wrap(import_foolbox(), attacked, attacked.counter)


def _tensorflow(foolbox: Any, model: AttackedModel, counter: Counter) -> Any:
    import tensorflow as tf

    @tf.function(reduce_retracing=True)
    def forward(images: Any) -> Any:
        # Without stop_gradient the backward function would hold the weights' gradients too.
        frozen = [(variable, tf.stop_gradient(variable.value)) for variable in model.variables]
        logits = model.traced_logits(frozen, images)
        # Where a model cuts the gradient, Foolbox's attacks need a gradient of zero, not none.
        sums = tf.reduce_sum(images, axis=list(range(1, len(images.shape))))
        return logits + 0.0 * sums[:, None]

    @tf.custom_gradient
    def counted(images: Any) -> Any:
        counter.queries += len(images)

        def backward(upstream: Any) -> Any:
            counter.gradients += len(images)
            return upstream

        return tf.identity(images), backward

    # Left to itself, Foolbox asks for the device in a way that TensorFlow warns about.
    device = "/GPU:0" if tf.config.list_physical_devices("GPU") else "/CPU:0"
    return foolbox.TensorFlowModel(
        lambda images: forward(counted(images)), bounds=model.value_range, device=device
    )


def _jax(foolbox: Any, model: AttackedModel, counter: Counter) -> Any:
    import jax

    @jax.jit
    def forward(values: Any, images: Any) -> Any:
        return model.traced_logits(list(zip(model.variables, values, strict=True)), images)

    values = [variable.value for variable in model.variables]

    def counted(images: Any) -> Any:
        counter.queries += len(images)
        if isinstance(images, jax.core.Tracer):  # Foolbox differentiates anew in each step
            counter.gradients += len(images)
            return forward(values, images)
        return forward(values, backend().padded(images))[: len(images)]

    return foolbox.JAXModel(counted, bounds=model.value_range, data_format="channels_last")


def _torch(foolbox: Any, model: AttackedModel, counter: Counter) -> Any:
    import torch

    def count_backward(gradient: Any) -> None:
        counter.gradients += len(gradient)

    class Frozen(torch.nn.Module):
        def forward(self, images: Any) -> Any:
            counter.queries += len(images)
            if images.requires_grad:
                images = images.view_as(images)  # hooks on a leaf would pile up
                images.register_hook(count_backward)
            mapping = [(variable, variable.value.detach()) for variable in model.variables]
            return model.traced_logits(mapping, images)

    device = next((variable.value.device for variable in model.variables), None)
    wrapped = foolbox.PyTorchModel(Frozen().eval(), bounds=model.value_range, device=device)
    wrapped.data_format = "channels_last"
    return wrapped


def _asked(foolbox: Any, model: Classifier) -> Any:
    """A classifier that is no Keras model: Foolbox's attacks ask it, without gradients."""

    def logits(images: Any) -> Any:
        return to_tensor(model.logits(keras.ops.convert_to_numpy(images)))

    name = keras.backend.backend()
    if name == "jax":
        return foolbox.JAXModel(logits, bounds=model.value_range, data_format="channels_last")
    if name == "tensorflow":
        return foolbox.TensorFlowModel(logits, bounds=model.value_range, device="/CPU:0")
    import torch

    class Asked(torch.nn.Module):
        def forward(self, images: Any) -> Any:
            return logits(images.detach())

    wrapped = foolbox.PyTorchModel(Asked().eval(), bounds=model.value_range)
    wrapped.data_format = "channels_last"
    return wrapped


def to_tensor(array: np.ndarray) -> Any:
    """A NumPy array as a tensor of the current backend, labels as int64 where it matters."""
    if np.issubdtype(array.dtype, np.integer):
        # Foolbox's losses on TensorFlow and PyTorch take no other integers.
        array = array.astype("int64")
    return keras.ops.convert_to_tensor(array)
