"""What every model takes and gives over the Open Inference Protocol v2."""

from __future__ import annotations

from models.card import Card
from service.protocol.tensors import BYTES, Spec

# A bundle is never changed in place, so there is one version of it.
VERSION = "1"


def input_specs(card: Card) -> dict[str, Spec]:
    """Inputs by name, of which a request sends one: encoded files, or preprocessed values."""
    size = card.preprocessing.size
    return _by_name(Spec("image", BYTES, (-1,)), Spec("input", "FP32", (-1, 3, size, size)))


def output_specs(card: Card) -> dict[str, Spec]:
    """Outputs by name, of which a request may name some."""
    classes = len(card.labels)
    return _by_name(
        Spec("probabilities", "FP32", (-1, classes)),
        Spec("logits", "FP32", (-1, classes)),
        Spec("label", BYTES, (-1,)),
        Spec("widths", "INT64", (-1, card.backbone.n_layers)),
        Spec("macs", "INT64", (-1,)),
        Spec("fraction", "FP64", (-1,)),
    )


def _by_name(*specs: Spec) -> dict[str, Spec]:
    return {spec.name: spec for spec in specs}
