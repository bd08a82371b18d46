"""A plain pretrained network becomes prunable without changing what it computes at full width.

Groups are prefixes, so channels must be ordered before they are grouped: the most important ones
first, in every layer that writes them and every layer that reads them. A channel's importance is
the L1 norm of its filter as batch normalisation scales it: a filter's own norm says nothing, for
the normalisation divides it out again.

Layers that write one residual stream share an order. A projection starts a new one. A shortcut
that pads carries the channels before it as the first ones; in the plain network (the usual CIFAR
ResNet) they are the middle ones, for it pads on both sides.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from models.config import ConvConfig
from models.layers import EPS, WidthConv
from models.network import Network


@dataclass(frozen=True)
class PlainConv:
    """A convolution and its batch normalisation, which has taken in the convolution's bias."""

    weight: Tensor
    gamma: Tensor
    beta: Tensor
    mean: Tensor
    var: Tensor

    def importance(self) -> Tensor:
        """(C,) L1 norm of each filter as the normalisation scales it."""
        return self.weight.abs().sum((1, 2, 3)) * self.gamma.abs() / torch.sqrt(self.var + EPS)

    def ordered(self, reads: Tensor, writes: Tensor) -> PlainConv:
        """With its input channels ordered by `reads`, its output channels by `writes`."""
        norm = (part[writes] for part in (self.gamma, self.beta, self.mean, self.var))
        return PlainConv(self.weight[writes][:, reads], *norm)


class PlainState:
    """Hands out the tensors of a plain state dict: none missing, misshapen or left over."""

    def __init__(self, state: Mapping[str, Tensor]) -> None:
        # DataParallel, under which many published networks were trained, prefixes every name.
        self.left = {
            name.removeprefix("module."): value
            for name, value in state.items()
            if not name.endswith("num_batches_tracked")
        }

    def take(self, name: str, shape: Sequence[int]) -> Tensor:
        """A tensor of the given shape, as float32."""
        if name not in self.left:
            raise ValueError(f"tensor {name} is missing")
        value, wanted = self.left.pop(name), tuple(shape)
        if value.shape != wanted:
            raise ValueError(f"tensor {name} is {tuple(value.shape)}, the backbone wants {wanted}")
        return value.float()

    def conv(self, name: str, norm: str, shape: Sequence[int]) -> PlainConv:
        """A convolution with a weight of the given shape, and the normalisation after it."""
        weight, channels = self.take(f"{name}.weight", shape), shape[:1]
        parts = ("weight", "bias", "running_mean", "running_var")
        gamma, beta, mean, var = (self.take(f"{norm}.{part}", channels) for part in parts)
        if f"{name}.bias" in self.left:
            mean = mean - self.take(f"{name}.bias", channels)
        return PlainConv(weight, gamma, beta, mean, var)

    def linear(self, name: str, shape: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Weight of the given shape, and bias, of a linear layer."""
        return self.take(f"{name}.weight", shape), self.take(f"{name}.bias", shape[:1])

    def finish(self) -> None:
        """Complain about what nobody took."""
        if self.left:
            some = ", ".join(sorted(self.left)[:3])
            raise ValueError(f"{len(self.left)} tensors are not of this backbone, such as {some}")


def read_state(path: Path) -> dict[str, Tensor]:
    """Read a state dict from a file: `.safetensors`, or else what `torch.save` wrote.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds something else.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # Both readers stumble over junk in many ways.
        raise ValueError("neither safetensors nor plain tensors saved by torch") from error
    if isinstance(state, dict):
        state = state.get("state_dict", state)
    if isinstance(state, dict) and all(map(_named_tensor, state.items())):
        return state
    raise ValueError("not a mapping from names to tensors")


def _named_tensor(item: tuple[object, object]) -> bool:
    return isinstance(item[0], str) and isinstance(item[1], Tensor)


def load_plain(network: Network, state: Mapping[str, Tensor]) -> None:
    """Load a plain pretrained state dict, channels ordered by importance; the agent is left alone.

    Args:
        network: not folded; changed in place, or not at all if the state does not fit.
        state: keys as in `models.backbones`, with or without `module.` before them.

    Raises:
        ValueError: a tensor is missing, of another shape, or not of this backbone.
    """
    plain, layers = PlainState(state), network.backbone.layers
    convs = [
        plain.conv(layer.name, layer.norm, conv.weight.shape)
        for layer, conv in zip(layers, _convs(network), strict=True)
    ]
    projections = {
        index: plain.conv(layer.name, layer.norm, projection.weight.shape)
        for index, layer, projection in _projections(network)
    }
    linears = [
        plain.linear(name, linear.weight.shape)
        for name, linear in zip(network.backbone.linear_names, _linears(network), strict=True)
    ]
    plain.finish()
    orders = channel_orders(layers, [conv.importance() for conv in convs])
    with torch.no_grad():
        _put_convs(network, convs, orders)
        _put_projections(network, projections, orders)
        _put_linears(network, linears, orders[-1])


def _put_convs(network: Network, convs: list[PlainConv], orders: list[Tensor]) -> None:
    reads = torch.arange(network.backbone.layers[0].in_channels)
    for module, plain, writes in zip(_convs(network), convs, orders, strict=True):
        _put(module, plain.ordered(reads, writes))
        reads = writes


def _put_projections(
    network: Network, projections: dict[int, PlainConv], orders: list[Tensor]
) -> None:
    for index, _, module in _projections(network):
        # It reads what the block reads: the stream that was last written two layers before.
        _put(module, projections[index].ordered(orders[index - 2], orders[index]))


def _put(module: WidthConv, conv: PlainConv) -> None:
    module.weight.copy_(conv.weight)
    # The plain network has one set of statistics: every input width starts from it.
    module.gamma.copy_(conv.gamma)
    module.beta.copy_(conv.beta)
    module.mean.copy_(conv.mean)
    module.var.copy_(conv.var)


def _put_linears(network: Network, linears: list[tuple[Tensor, Tensor]], order: Tensor) -> None:
    for index, (linear, (weight, bias)) in enumerate(zip(_linears(network), linears, strict=True)):
        if index == 0:
            # Features come channel by channel: each channel's columns move together.
            weight = weight.reshape(len(weight), len(order), -1)[:, order].flatten(1)
        linear.weight.copy_(weight)
        linear.bias.copy_(bias)


def _convs(network: Network) -> Iterator[WidthConv]:
    for conv in network.convs:
        assert isinstance(conv, WidthConv)
        yield conv


def _projections(network: Network) -> Iterator[tuple[int, ConvConfig, WidthConv]]:
    for index, projection in network.projections.items():
        layer = network.backbone.projection(int(index))
        assert isinstance(projection, WidthConv)
        assert layer is not None
        yield int(index), layer, projection


def _linears(network: Network) -> Iterator[nn.Linear]:
    for linear in network.head:
        assert isinstance(linear, nn.Linear)
        yield linear


def channel_orders(layers: Sequence[ConvConfig], importance: Sequence[Tensor]) -> list[Tensor]:
    """The order of each layer's output channels, most important first.

    Args:
        layers: L convolutions. importance: (C,) per layer.
    Returns: per layer (C,) int64, the channel of the plain network that comes to each position.
    """
    orders: dict[int, Tensor] = {}
    for writers in _writers(layers):
        # Layers differ in scale, so that each votes with its shares.
        share = torch.stack([F.normalize(importance[i], p=1, dim=0) for i in writers]).sum(0)
        order = share.argsort(descending=True, stable=True)
        first = writers[0]
        if layers[first].shortcut == "pad":
            order = _carried_first(order, orders[first - 2])
        orders.update(dict.fromkeys(writers, order))
    return [orders[index] for index in range(len(layers))]


def _writers(layers: Sequence[ConvConfig]) -> list[list[int]]:
    """Layers whose output channels share an order: those that write one stage of a stream."""
    sets: list[list[int]] = []
    stream: list[int] = []
    for index, layer in enumerate(layers):
        if layer.shortcut == "identity":
            stream.append(index)
            continue
        sets.append([index])
        if layer.shortcut is not None or index == 0:
            stream = sets[-1]
    return sets


def _carried_first(order: Tensor, before: Tensor) -> Tensor:
    """An order whose first channels are those of the stream `before` the padding, as they were."""
    carried = before + (len(order) - len(before)) // 2
    return torch.cat([carried, order[~torch.isin(order, carried)]])
