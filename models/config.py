"""Dimensions of the networks: plain frozen dataclasses, no torch, no files, no environment."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

Shortcut = Literal["identity", "pad", "project"]
Sees = Literal["answer", "maps"]
Views = Literal["image", "both"]

# The penalty p enters the agent as p / (p + midpoint), in [0, 1), so that any price can be asked.
PENALTY_MIDPOINT = 0.2

# Of a look's probabilities, how many of the largest the agent sees in falling order, by what else
# it sees: the confidence, whatever the class.
LOOK_TOP: dict[Sees, int] = {"answer": 2, "maps": 5}
# Below this the logarithm of a probability says no more.
LOOK_LEAST_LOG = -10.0
# Where looks are at the image and at its mirror image, what the answer before counts in the next.
BLEND = 1 / 3


def check_fields(
    kind: type[Any], values: Mapping[str, Any], optional: Collection[str] = ()
) -> None:
    """Check that values are those which `dataclasses.asdict` writes of a class.

    Args:
        optional: fields that need not be there.

    Raises:
        ValueError: another one is missing, or there is one that the class has not.
    """
    fields = {field.name for field in dataclasses.fields(kind)}
    if missing := fields - set(values) - set(optional):
        raise ValueError(f"{kind.__name__} without {', '.join(sorted(missing))}")
    if unknown := set(values) - fields:
        raise ValueError(f"{kind.__name__} with unknown {', '.join(sorted(unknown))}")


@dataclass(frozen=True)
class ConvConfig:
    """One convolution with its normalisation and ReLU.

    Attributes:
        name: the convolution's key in a plain pretrained state dict.
        norm: the normalisation's key there.
        shortcut: set on the second of the two convolutions of a residual block, to whose output
            the block's input is added: as it is, subsampled and zero-padded, or through a 1×1
            convolution.
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

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ConvConfig:
        """Read back what `dataclasses.asdict` wrote, lists as tuples.

        Raises:
            ValueError: a field is missing or unknown.
        """
        check_fields(cls, values)
        return cls(**{**values, "pool": values["pool"] and tuple(values["pool"])})


@dataclass(frozen=True)
class BackboneConfig:
    """A backbone from its published shape: a chain of layers, each reading the one before.

    The width of a residual stream is chosen where the stream begins, by the stem or by a block
    that changes its shape. Blocks that add to it as it is are as wide as it is: their second layer
    is tied to what the block reads.

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
        for before, layer in pairwise(self.layers):
            if layer.in_channels != before.out_channels:
                raise ValueError(
                    f"backbone {self.name}: {layer.name} reads {layer.in_channels} channels, but "
                    f"{before.name} before it has {before.out_channels}"
                )
        if len(self.linears) != len(self.linear_names):
            raise ValueError(f"backbone {self.name}: linears and linear_names differ in length")
        ends = [index for index, layer in enumerate(self.layers) if layer.shortcut is not None]
        if any(later - end < 2 for end, later in pairwise([0, *ends])):
            raise ValueError(f"backbone {self.name}: a residual block has two layers, after one")
        if self.sizes()[-1] < 1:
            raise ValueError(
                f"backbone {self.name}: image_size {self.image_size} leaves no pixel at the end"
            )
        for end in ends:
            self._check_shortcut(end)

    def _check_shortcut(self, end: int) -> None:
        """See that a block's input can be added to what its last layer gives."""
        before, start, layer = self.layers[end - 2 : end + 1]
        reads, gives, sizes = start.in_channels, layer.out_channels, self.sizes()
        side = before.pooled_size(sizes[end - 2])
        # But for the input as it is, a shortcut takes every stride-th pixel.
        stride = 1 if layer.shortcut == "identity" else start.stride
        pads = layer.shortcut == "pad" and reads < gives
        as_wide = reads == gives or pads or layer.shortcut == "project"
        if not as_wide or -(-side // stride) != sizes[end]:
            raise ValueError(
                f"backbone {self.name}: the shortcut {layer.shortcut} of {layer.name} cannot add "
                f"{reads} maps of side {side} to {gives} of side {sizes[end]}"
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

    def tied(self, layer: int) -> bool:
        """Whether a layer must be as wide as what its residual block reads."""
        return self.layers[layer].shortcut == "identity"

    def projection(self, layer: int) -> ConvConfig | None:
        """The 1×1 convolution of a block's input that the shortcut of `layer` consists of, if any.

        Its output is as wide as the layer's.
        """
        end = self.layers[layer]
        if end.shortcut != "project":
            return None
        start = self.layers[layer - 1]
        return ConvConfig(
            name=f"{end.projection}.0",
            norm=f"{end.projection}.1",
            in_channels=start.in_channels,
            out_channels=end.out_channels,
            kernel=1,
            stride=start.stride,
            padding=0,
        )

    def in_channels(self, layer: int, width: int) -> int:
        """Channels that a layer, or the end at index L, reads when the layer before had `width`."""
        if layer == 0:
            return self.layers[0].in_channels
        return self.out_channels(layer - 1, width)

    def out_channels(self, layer: int, width: int) -> int:
        """Channels that a layer computes at `width`."""
        return self.layers[layer].out_channels * width // self.groups

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> BackboneConfig:
        """Read back what `dataclasses.asdict` wrote, lists as tuples.

        Raises:
            ValueError: a field is missing or unknown, or the dimensions do not work out.
        """
        check_fields(cls, values)
        tuples = {name: tuple(values[name]) for name in ("linears", "linear_names")}
        layers = tuple(map(ConvConfig.from_dict, values["layers"]))
        return cls(**{**values, **tuples, "layers": layers})


@dataclass(frozen=True)
class AgentConfig:
    """The decision network.

    Attributes:
        form: "paths" is ours: the narrowest of a few paths is run first, to its end, and what it
            found decides whether that is the answer or along which other path the image is run
            again; what that finds decides anew. The others decide layer by layer, and leave layer
            0 whole: "paper" is the paper's, trained at one penalty per group; "priced" takes the
            penalty, a price of MACs, as an input.
        paths: of the form "paths", the widths of each, by rising MACs, from the narrowest to the
            full network.
        looks: of the form "paths", after how many of them the agent decides; 0 for all but the
            last. After the others their answer stands.
        sees: of the form "paths", what of a path it decides by: "answer", the two largest
            probabilities, or "maps", the largest sorted, every class's, and the last map's means.
            Cards that do not say, as older ones, have "maps".
        views: of the form "paths", what they look at: "image", or "both", the image and its mirror
            image. Then some paths are run on the mirror image (`mirrored`): two views of an image
            err less alike than two widths do. Cards that do not say, as older ones, have "image".
        blend: of the form "paths", what the answer before, if there is one, counts in the answer
            after a path; the path's own logits count the rest. On cards that do not say, as older
            ones, `BLEND` if they look at both views, else nothing.
        encoding: of the other forms, features into which each layer's pooled input is encoded.
        hidden: features of the hidden layers, or of the recurrent cell.
    """

    form: Literal["paths", "priced", "paper"] = "priced"
    encoding: int = 32
    hidden: int = 64
    paths: tuple[tuple[int, ...], ...] = ()
    looks: int = 0
    sees: Sees = "maps"
    views: Views = "image"
    blend: float = 0.0

    def __post_init__(self) -> None:
        if self.form not in ("paths", "priced", "paper"):
            raise ValueError(
                f"agent form {self.form!r} is unknown: choose 'paths', 'priced' or 'paper'"
            )
        if (self.form == "paths") != (len(self.paths) > 1) or len(self.paths) == 1:
            raise ValueError(f"agent of form {self.form!r} with {len(self.paths)} paths")
        if self.looks < 0:
            raise ValueError(f"agent with {self.looks} looks")
        if self.sees not in ("answer", "maps"):
            raise ValueError(f"agent sees {self.sees!r}: choose 'answer' or 'maps'")
        if self.views not in ("image", "both"):
            raise ValueError(f"agent views {self.views!r}: choose 'image' or 'both'")
        if not 0 <= self.blend < 1:
            raise ValueError(f"agent's blend {self.blend}: it must be in [0, 1)")

    def mirrored(self, number: int) -> bool:
        """Whether a path is run on the mirror image.

        The second is, as it follows the narrowest, and every second one, counted from the whole.
        """
        last = len(self.paths) - 1
        second = number == 1 or (last - number) % 2 == 1
        return self.views == "both" and 0 < number < last and second

    @property
    def deciding(self) -> int:
        """Number of the paths, from the first on, after which the agent decides."""
        most = max(len(self.paths) - 1, 0)
        return min(self.looks or most, most)

    @property
    def cell_inputs(self) -> int:
        """Features that enter the recurrent cell."""
        return self.encoding + (self.form == "priced")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> AgentConfig:
        """Read back what `dataclasses.asdict` wrote, lists as tuples.

        Raises:
            ValueError: a field is missing, other than `sees`, `views` and `blend`, or is unknown.
        """
        check_fields(cls, values, optional=("sees", "views", "blend"))
        blend = BLEND if values.get("views") == "both" else 0.0
        paths = tuple(tuple(path) for path in values["paths"])
        return cls(**{"blend": blend, **values, "paths": paths})


def look_sizes(backbone: BackboneConfig, agent: AgentConfig, look: int) -> tuple[int, ...]:
    """Features of each layer of the decision after path `look`, first what it reads.

    That is what `models.agent.PathAgent.seen` gives, and the penalty; it values all later paths.
    """
    seen = 2 * min(LOOK_TOP[agent.sees], backbone.classes)
    if agent.sees == "maps":
        maps = backbone.in_channels(backbone.n_layers, agent.paths[look][-1])
        seen += 2 * backbone.classes + maps
    return seen + 1, agent.hidden, agent.hidden, len(agent.paths) - 1 - look


def decisions(backbone: BackboneConfig, agent: AgentConfig) -> list[int]:
    """The layers whose widths the agent chooses on the way, in order."""
    if agent.form == "paths":
        return []
    return [i for i in range(1, backbone.n_layers) if not backbone.tied(i)]


def check_paths(backbone: BackboneConfig, agent: AgentConfig) -> None:
    """Check that the agent's paths are of the backbone.

    Raises:
        ValueError: one is not, or the narrowest is not the first, or the whole not the last.
    """
    k = backbone.groups
    for number, path in enumerate(agent.paths):
        fits = len(path) == backbone.n_layers and all(1 <= w <= k for w in path)
        if not fits or any(path[i] != path[i - 2] for i in range(len(path)) if backbone.tied(i)):
            raise ValueError(f"agent path {list(path)} is none of backbone {backbone.name}")
        if (number == 0) != (set(path) == {1}):
            raise ValueError("the first of the agent's paths, and only it, must be the narrowest")
        if (number == len(agent.paths) - 1) != (set(path) == {k}):
            raise ValueError("the last of the agent's paths, and only it, must be the full network")


def to_dict(config: BackboneConfig | AgentConfig) -> dict[str, Any]:
    """A configuration as JSON-ready values."""
    return dataclasses.asdict(config)
