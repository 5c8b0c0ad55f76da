"""Surrogate gradients, or the quantizer's own attack, that find more."""

from __future__ import annotations

import keras
from keras import ops

from keras_qusec.attacks import AttackedModel
from keras_qusec.audit.check import NOT_RUN, Check, Finding, more_found
from keras_qusec.audit.evidence import Evidence
from keras_qusec.defenses import straight_through
from keras_qusec.graphs import calls_of, has_graph
from keras_qusec.integer_inputs import integer_input
from keras_qusec.logits import output_kind
from keras_qusec.results import Result

# How many layers in front are tried as the identity.
_FRONT_LAYERS = 2


class SurrogateGradients(Check):
    """Does an adversary who knows the defence find no more?"""

    identifier = "surrogates"
    title = "surrogate gradients and the quantizer's own attack find no more"
    rule = "Fails if, with 95 % confidence, they break more than 0.5 % of the images in addition"
    explanation = (
        "A sweep of surrogate gradients (BPDA, also the identity for layers in front that keep "
        "the shape of the image) and a search in the reachable levels see through steps."
    )
    source = "Athalye et al. 2018; Buckman et al. 2018"
    remedy = 'Judge adaptively: threat_models=("white-box", "adaptive").'

    def own_results(self, evidence: Evidence) -> list[Result]:
        adaptive_report = (
            [] if evidence.adaptive_report is None else evidence.adaptive_report.results
        )
        return [*adaptive_report, *evidence.results_of(evidence.identities)]

    def judge(self, evidence: Evidence) -> Finding:
        if evidence.adaptive_report is None and not evidence.identities:
            return Finding(NOT_RUN, "no layer offers a surrogate gradient or stands in front")
        found = evidence.transferred(evidence.identities) | evidence.known_defense
        ways = []
        if evidence.adaptive_report is not None:
            hardnesses = evidence.adaptive_report.provenance["identity"]["surrogate hardnesses"]
            listed = ", ".join(f"{z:g}" for z in hardnesses)
            own = evidence.adaptive_report.provenance["identity"]["joined attacks"]
            ways.append(
                " and ".join([f"PGD through surrogates of hardness {listed}", *sorted(own)])
            )
        if evidence.identities:
            ways.append(f"PGD with the {' and the '.join(evidence.identities)}")
        # Who follows surrogates already has an attack that is a little weaker or stronger at each.
        limit = 0.02 if evidence.follows_surrogates else 0.005
        return more_found(evidence, found, "; ".join(ways), limit)


@keras.saving.register_keras_serializable("keras_qusec")
class ThroughIdentity(keras.Model):
    """A classifier whose first layers have the gradient of the identity.

    Args:
        head: from images to a tensor of their shape.
        tail: from that to the outputs.
        kind: what the outputs are.
    """

    def __init__(self, head: keras.Model, tail: keras.Model, kind: str, **settings: object) -> None:
        super().__init__(**settings)
        self.head, self.tail, self.output_kind = head, tail, kind
        self.takes_whole_numbers = integer_input(head) is not None

    def call(self, images: object, training: bool = False) -> object:
        return self.tail(straight_through(self.head(images), images), training=False)

    def get_config(self) -> dict[str, object]:
        serialize = keras.saving.serialize_keras_object
        parts = {"head": serialize(self.head), "tail": serialize(self.tail)}
        return {**super().get_config(), **parts, "kind": self.output_kind}

    @classmethod
    def from_config(cls, config: dict) -> ThroughIdentity:
        parts = {name: keras.saving.deserialize_keras_object(config.pop(name))
                 for name in ("head", "tail")}  # fmt: skip
        return cls(**parts, **config)


def with_identity(attacked: AttackedModel) -> dict[str, keras.Model]:
    """A model with the identity's gradient for the layers in front that keep an image's shape.

    By the names of the layers; none for a model without a graph.
    """
    model = attacked.model
    if not has_graph(model) or len(model.inputs) != 1:
        return {}
    shape = tuple(model.inputs[0].shape)
    # From the input on: the last tensors of the image's shape before it changes.
    kept = [
        call
        for call in reversed(calls_of(model))
        if tuple(call.output.shape) == shape and _may_defend(call.operation)
    ]
    made: dict[str, keras.Model] = {}
    for call in kept[:_FRONT_LAYERS]:
        head = keras.Model(model.inputs, call.output)
        try:
            tail = keras.Model(call.output, model.outputs)
        except ValueError:
            continue  # something of the image goes past this layer
        name = str(call.operation.name)
        made[name] = ThroughIdentity(head, tail, output_kind(model), name=f"through_{name}")
        made[name](ops.zeros((1, *shape[1:])))
    return made


def _may_defend(operation: object) -> bool:
    """Whether a layer may be a defence and is no ordinary part of a network."""
    ordinary = (
        keras.layers.BatchNormalization, keras.layers.Conv2D, keras.layers.Dense,
        keras.layers.Dropout, keras.layers.Normalization, keras.layers.Rescaling,
    )  # fmt: skip
    return not isinstance(operation, ordinary)
