"""Static pruning: a smaller network made from a whole one, the same for every image.

A static network is a `Network` of one group, so its only path is the whole one. Only chains of
convolutions are pruned; hidden linear layers keep their features, as they do in ours.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.compute import mac_table
from models.config import AgentConfig, BackboneConfig
from models.layers import EPS, WidthConv
from models.network import Network
from training.batches import Batch
from training.errors import ConfigError

Kind = TypeVar("Kind", bound=nn.Module)

# Taylor is the default, the only one that looks at images: it asks what each channel matters to
# the loss. The weights' own norms say less, for normalisation divides them out again.
CRITERIA = {
    "taylor": "GroupTaylorImportance",
    "magnitude": "GroupMagnitudeImportance",
    "lamp": "LAMPImportance",
    "bn-scale": "BNScaleImportance",
}
# The whole way to no channels is cut in so many steps: before each the channels are ranked anew,
# for importances are those of the network as it is, and the last overshoots by little.
STEPS = 100


def is_chain(backbone: BackboneConfig) -> bool:
    """Whether no layer adds to what an earlier one computed."""
    return all(layer.shortcut is None for layer in backbone.layers)


def whole(network: Network) -> list[int]:
    """The only path of a static network."""
    return [1] * network.backbone.n_layers


def full_macs(backbone: BackboneConfig) -> int:
    """MACs of the plain backbone."""
    return mac_table(backbone, AgentConfig()).full


def with_channels(backbone: BackboneConfig, channels: Sequence[int]) -> BackboneConfig:
    """A chain of one group whose L layers have the given output channels."""
    reads = (backbone.layers[0].in_channels, *channels)
    layers = tuple(
        replace(layer, in_channels=i, out_channels=o)
        for layer, i, o in zip(backbone.layers, reads, channels, strict=False)
    )
    return replace(backbone, layers=layers, groups=1)


def dearest_within(
    backbone: BackboneConfig, paths: Iterable[Sequence[int]], fraction: float
) -> BackboneConfig:
    """The chain that the dearest of some paths is within a share of the MACs, on its own.

    Args:
        backbone: of the groups in which the paths count.

    Raises:
        ConfigError: none of them is so cheap.
    """
    shapes = [
        with_channels(
            backbone,
            [
                layer.out_channels * width // backbone.groups
                for layer, width in zip(backbone.layers, path, strict=True)
            ],
        )
        for path in paths
    ]
    within = [shape for shape in shapes if full_macs(shape) <= fraction * full_macs(backbone)]
    if not within:
        least = min(map(full_macs, shapes), default=full_macs(backbone)) / full_macs(backbone)
        raise ConfigError(
            f"--fraction {fraction} is below the cheapest path of --widths, which has {least:.3f}"
        )
    return max(within, key=full_macs)


def scaled(backbone: BackboneConfig, fraction: float) -> BackboneConfig:
    """The chain with one share of each layer's channels, the largest within a share of the MACs.

    Raises:
        ConfigError: one channel a layer is already more.
    """

    def at(share: float) -> BackboneConfig:
        return with_channels(
            backbone, [max(1, round(layer.out_channels * share)) for layer in backbone.layers]
        )

    limit = fraction * full_macs(backbone)
    if full_macs(at(0.0)) > limit:
        raise _out_of_reach(backbone, fraction)
    low, high = 0.0, 1.0
    for _ in range(40):
        share = (low + high) / 2
        low, high = (share, high) if full_macs(at(share)) <= limit else (low, share)
    return at(low)


@torch.no_grad()
def by_l1(network: Network, backbone: BackboneConfig) -> Network:
    """Remove the channels whose filters have the smallest L1 norm (Li et al., ICLR 2017).

    Args:
        backbone: how many channels of each layer stay.
    """
    small = Network(backbone)
    reads = torch.arange(backbone.layers[0].in_channels)
    for layer, source, target in zip(backbone.layers, network.convs, small.convs, strict=True):
        weight, *norm = _parts(source)
        writes = weight.abs().sum((1, 2, 3)).topk(layer.out_channels).indices.sort().values
        _put(_parts(target), [weight[writes][:, reads], *(part[:, writes] for part in norm)])
        reads = writes
    state = network.head.state_dict()
    weight, channels = state["0.weight"], network.backbone.layers[-1].out_channels
    # Features come channel by channel: each channel's columns stay together.
    state["0.weight"] = weight.reshape(len(weight), channels, -1)[:, reads].flatten(1)
    small.head.load_state_dict(state)
    return small


def by_library(
    network: Network, fraction: float, criterion: str, batches: Iterable[Batch]
) -> Network:
    """Let Torch-Pruning remove channels, ranked over all layers, so that each keeps its own share.

    Args:
        network: it is not changed.
        criterion: one of `CRITERIA`.
        batches: training images for the gradients, taken in turn, one batch a step.

    Raises:
        ConfigError: the library is missing, or the fraction out of reach.
    """
    library, backbone = torch_pruning(), network.backbone
    plain = to_sequential(network).to(network.device)
    limit = fraction * full_macs(backbone)
    some = itertools.cycle(batches)
    pruner = library.pruner.BasePruner(
        plain,
        torch.zeros(1, 3, backbone.image_size, backbone.image_size, device=network.device),
        importance=getattr(library.importance, CRITERIA[criterion])(),
        global_pruning=True,
        pruning_ratio=1.0,
        # Each layer keeps half of an equal share at least: one that is cut through ends it all.
        max_pruning_ratio=1 - math.sqrt(fraction) / 2,
        iterative_steps=STEPS,
        ignored_layers=[module for module in plain if isinstance(module, nn.Linear)],
    )
    # With the batch's own statistics, or what is left of a network soon says nothing.
    plain.train()
    for _ in range(STEPS):
        batch = next(some)
        plain.zero_grad()
        F.cross_entropy(plain(batch.images), batch.labels).backward()  # type: ignore[no-untyped-call]
        pruner.step()
        if full_macs(_shape(backbone, plain)) <= limit:
            return from_sequential(backbone, plain)
    raise _out_of_reach(backbone, fraction)


def to_sequential(network: Network) -> nn.Sequential:
    """A copy of a static network as plain modules, trainable, in evaluation mode."""
    modules: list[nn.Module] = []
    for layer, source in zip(network.backbone.layers, network.convs, strict=True):
        shape = (layer.in_channels, layer.out_channels, layer.kernel, layer.stride, layer.padding)
        conv, norm = nn.Conv2d(*shape, bias=False), nn.BatchNorm2d(layer.out_channels, eps=EPS)
        _put(_plain_parts(conv, norm), _parts(source))
        modules += [conv, norm, nn.ReLU()]
        if layer.pool is not None:
            modules.append(nn.MaxPool2d(*layer.pool))
    modules += [nn.AdaptiveAvgPool2d(network.backbone.pool_to), nn.Flatten()]
    for index, linear in enumerate(copy.deepcopy(network.head)):
        modules += [nn.ReLU(), linear] if index else [linear]
    return nn.Sequential(*modules).eval().requires_grad_(True)


def from_sequential(backbone: BackboneConfig, plain: nn.Sequential) -> Network:
    """A static network from what `to_sequential` made, its channels perhaps pruned since."""
    network = Network(_shape(backbone, plain))
    pairs = zip(_of(nn.Conv2d, plain), _of(nn.BatchNorm2d, plain), strict=True)
    for target, (conv, norm) in zip(network.convs, pairs, strict=True):
        _put(_parts(target), _plain_parts(conv, norm))
    for mine, linear in zip(network.head, _of(nn.Linear, plain), strict=True):
        mine.load_state_dict(linear.state_dict())
    return network


def _shape(backbone: BackboneConfig, plain: nn.Sequential) -> BackboneConfig:
    return with_channels(backbone, [conv.out_channels for conv in _of(nn.Conv2d, plain)])


def _of(kind: type[Kind], plain: nn.Sequential) -> list[Kind]:
    return [module for module in plain if isinstance(module, kind)]


def _parts(conv: nn.Module) -> list[Tensor]:
    """Weight, scale, shift, mean and variance of a prunable convolution."""
    assert isinstance(conv, WidthConv)
    return [conv.weight, conv.gamma, conv.beta, conv.mean, conv.var]


def _plain_parts(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> list[Tensor]:
    """As `_parts`, of plain modules."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return [conv.weight, norm.weight, norm.bias, norm.running_mean, norm.running_var]


@torch.no_grad()
def _put(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source.reshape(target.shape))


def torch_pruning() -> Any:
    """The library.

    Raises:
        ConfigError: it is missing.
    """
    try:
        import torch_pruning
    except ImportError as error:
        raise ConfigError(
            "--method torch-pruning needs the package torch-pruning: pip install torch-pruning"
        ) from error
    return torch_pruning


def _out_of_reach(backbone: BackboneConfig, fraction: float) -> ConfigError:
    return ConfigError(
        f"--fraction {fraction} is too small: {backbone.name} cannot be pruned so far"
    )
