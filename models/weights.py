"""From a trained network to a bundle's tensors, and back to a network for inference."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor, nn

from models.config import AgentConfig, BackboneConfig
from models.layers import EPS, FoldedConv, WidthConv
from models.network import Network
from models.storage import Tensors


def export(network: Network) -> Tensors:
    """Every tensor of a bundle by name, float32; `models.bundle.tensor_shapes` gives the shapes.

    Args:
        network: not folded.
    """
    tensors: dict[str, Tensor] = {}
    for name, conv in convs(network):
        assert isinstance(conv, WidthConv)
        scale, shift = conv.affine()
        tensors[f"{name}.weight"] = conv.weight
        tensors[f"{name}.scale"], tensors[f"{name}.shift"] = scale, shift
    tensors.update({f"head.{k}": v for k, v in network.head.state_dict().items()})
    tensors.update({f"agent.{k}": v for k, v in network.agent.state_dict().items()})
    return {
        name: value.detach().cpu().float().contiguous().numpy() for name, value in tensors.items()
    }


def load(backbone: BackboneConfig, agent: AgentConfig, tensors: Tensors) -> Network:
    """A network for inference: normalisation folded, float32, no gradients."""
    values = {name: torch.from_numpy(value.astype(np.float32)) for name, value in tensors.items()}
    network = Network(backbone, agent)
    for index, layer in enumerate(backbone.layers):
        network.convs[index] = FoldedConv(layer, **_under(f"conv.{index}.", values))
    for name in network.projections:
        projection = backbone.projection(int(name))
        assert projection is not None
        network.projections[name] = FoldedConv(projection, **_under(f"projection.{name}.", values))
    network.head.load_state_dict(_under("head.", values))
    network.agent.load_state_dict(_under("agent.", values))
    return network.eval().requires_grad_(False)


def trainable(backbone: BackboneConfig, tensors: Tensors) -> Network:
    """A network for training, in evaluation mode equal to the bundle whose tensors these are.

    Its normalisation holds no statistics yet, only the scale and shift that it was folded to: see
    `training.pretrained.settle`. Its agent is a new one.
    """
    values = {name: torch.from_numpy(value.astype(np.float32)) for name, value in tensors.items()}
    network = Network(backbone)
    for name, conv in convs(network):
        assert isinstance(conv, WidthConv)
        conv.weight.data.copy_(values[f"{name}.weight"])
        conv.gamma.data.copy_(values[f"{name}.scale"] * (1 + EPS) ** 0.5)
        conv.beta.data.copy_(values[f"{name}.shift"])
    network.head.load_state_dict(_under("head.", values))
    return network


def folded(network: Network) -> Network:
    """A copy for inference, nothing rounded."""
    return load(network.backbone, network.agent.config, export(network))


def convs(network: Network) -> Iterator[tuple[str, nn.Module]]:
    """Every convolution with its name in a bundle."""
    for index, conv in enumerate(network.convs):
        yield f"conv.{index}", conv
    for name, projection in network.projections.items():
        yield f"projection.{name}", projection


def _under(prefix: str, values: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): v for name, v in values.items() if name.startswith(prefix)}
