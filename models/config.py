"""Dimensions of the networks: plain frozen dataclasses, no torch, no files, no environment."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

Reads = Literal["previous", "stream"]
Shortcut = Literal["identity", "pad", "project"]

# The penalty p enters the agent as p / (p + midpoint), in [0, 1), so that any price can be asked.
PENALTY_MIDPOINT = 0.2

# Of a glance's probabilities, how many of the largest the agent also sees in falling order: the
# confidence, whatever the class.
GLANCE_TOP = 5


@dataclass(frozen=True)
class ConvConfig:
    """One convolution with its normalisation and ReLU.

    Attributes:
        name: the convolution's key in a plain pretrained state dict.
        norm: the normalisation's key there.
        reads: "previous" reads the prefix computed by the layer before; "stream" reads the
            residual stream, which is always whole.
        shortcut: set on the second convolution of a residual block, which adds its prefix to the
            block's input: as it is, subsampled and zero-padded, or through a 1×1 convolution.
        projection: key prefix of that 1×1 convolution (`.0`) and its normalisation (`.1`).
        pool: max-pooling after the ReLU as (kernel, stride, padding).
    """

    name: str
    norm: str
    in_channels: int
    out_channels: int
    kernel: int = 3
    stride: int = 1
    padding: int = 1
    pool: tuple[int, int, int] | None = None
    reads: Reads = "previous"
    shortcut: Shortcut | None = None
    projection: str | None = None

    def out_size(self, size: int) -> int:
        """Side of the output map, before pooling, for an input map of side `size`."""
        return (size + 2 * self.padding - self.kernel) // self.stride + 1

    def pooled_size(self, size: int) -> int:
        """Side of the output map after pooling, for an output map of side `size`."""
        if self.pool is None:
            return size
        kernel, stride, padding = self.pool
        return (size + 2 * padding - kernel) // stride + 1


@dataclass(frozen=True)
class BackboneConfig:
    """A backbone from its published shape; layer 0 is never pruned.

    Attributes:
        image_size: side of the square input image, in pixels.
        groups: k, the number of slices of a layer's output channels.
        linears: output features of the linear layers at the end, the classes last.
        linear_names: their keys in a plain pretrained state dict.
        pool_to: side of the map that average pooling leaves before the first linear layer.
    """

    name: str
    image_size: int
    layers: tuple[ConvConfig, ...]
    linears: tuple[int, ...]
    linear_names: tuple[str, ...]
    groups: int = 4
    pool_to: int = 1

    def __post_init__(self) -> None:
        for layer in self.layers:
            if layer.out_channels % self.groups:
                raise ValueError(
                    f"backbone {self.name}: {layer.name} has {layer.out_channels} channels, "
                    f"which {self.groups} groups do not divide"
                )
        if len(self.linears) != len(self.linear_names):
            raise ValueError(f"backbone {self.name}: linears and linear_names differ in length")
        for before, layer in zip(self.layers, self.layers[1:], strict=False):
            if before.shortcut is not None and layer.reads != "stream":
                raise ValueError(
                    f"backbone {self.name}: {layer.name} must read the stream, which the layer "
                    "before it writes"
                )
        if self.sizes()[-1] < 1:
            raise ValueError(
                f"backbone {self.name}: image_size {self.image_size} leaves no pixel at the end"
            )

    @property
    def n_layers(self) -> int:
        return len(self.layers)

    @property
    def classes(self) -> int:
        return self.linears[-1]

    def sizes(self) -> list[int]:
        """Side of each layer's output map, before its pooling; last, of the map at the end."""
        sizes, size = [], self.image_size
        for layer in self.layers:
            size = layer.out_size(size)
            sizes.append(size)
            size = layer.pooled_size(size)
        return [*sizes, size]

    def whole_input(self, layer: int) -> bool:
        """Whether a layer (at index L, the end) reads all channels whatever the width before."""
        if layer == 0:
            return True
        if layer == self.n_layers:
            return self.layers[-1].shortcut is not None
        return self.layers[layer].reads == "stream"

    def in_channels(self, layer: int, width: int) -> int:
        """Channels that a layer, or the end at index L, reads when the layer before had `width`."""
        if layer == self.n_layers:
            channels = self.layers[-1].out_channels
        else:
            channels = self.layers[layer].in_channels
        return channels if self.whole_input(layer) else channels * width // self.groups

    def out_channels(self, layer: int, width: int) -> int:
        """Channels that a layer computes at `width`."""
        return self.layers[layer].out_channels * width // self.groups

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BackboneConfig:
        """Read back what `dataclasses.asdict` wrote, lists as tuples."""
        layers = tuple(
            ConvConfig(**{**layer, "pool": tuple(layer["pool"]) if layer.get("pool") else None})
            for layer in values["layers"]
        )
        rest = {name: values[name] for name in ("name", "image_size", "groups", "pool_to")}
        return cls(
            layers=layers,
            linears=tuple(values["linears"]),
            linear_names=tuple(values["linear_names"]),
            **rest,
        )


@dataclass(frozen=True)
class AgentConfig:
    """The decision network.

    Attributes:
        form: "priced" is ours: the penalty is an input and prices MACs. "paper" is the paper's:
            trained at one penalty per group; a further penalty is taken off its Q-values.
        encoding: features into which each layer's pooled input is encoded.
        hidden: features of the recurrent cell.
        glance: whether the narrowest path is run first, to its end. Its opinion is what the first
            decision sees; width 1 there means that it will do, and is final: all widths are 1.
    """

    form: Literal["priced", "paper"] = "priced"
    encoding: int = 32
    hidden: int = 64
    glance: bool = False

    def __post_init__(self) -> None:
        if self.form not in ("priced", "paper"):
            raise ValueError(f"agent form {self.form!r} is unknown: choose 'priced' or 'paper'")

    @property
    def cell_inputs(self) -> int:
        """Features that enter the recurrent cell."""
        return self.encoding + (self.form == "priced")


def state_features(backbone: BackboneConfig, agent: AgentConfig, layer: int, width: int) -> int:
    """Features that the agent's encoder of a layer reads when the layer before had `width`."""
    if agent.glance and layer == 1:
        seen = min(GLANCE_TOP, backbone.classes) + backbone.classes
        return seen + backbone.in_channels(backbone.n_layers, 1)
    return backbone.in_channels(layer, width)


def to_dict(config: BackboneConfig | AgentConfig) -> dict[str, Any]:
    """A configuration as JSON-ready values."""
    return dataclasses.asdict(config)
