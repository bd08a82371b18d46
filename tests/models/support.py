"""Small networks with random weights and statistics, and random paths through them."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from models import backbones
from models.agent import PathAgent
from models.compute import mac_table, path_macs
from models.config import BLEND, AgentConfig, BackboneConfig, ConvConfig, Views
from models.network import Network

# Name → width factor and image size: each small enough for milliseconds, every layer prunable.
SMALL = {
    "mcifarnet": (0.125, 12),
    "vgg16": (0.0625, 32),
    "resnet20": (0.25, 8),
    "resnet18": (0.0625, 32),
}
# Those with few enough paths to try them all, and those as they are published.
ALL = ["tiny", "stream", *SMALL]


def small_backbone(name: str, classes: int = 5) -> BackboneConfig:
    """A narrow backbone on small images."""
    width, image_size = SMALL[name]
    return backbones.build(name, classes, width=width, image_size=image_size)


def tiny_backbone() -> BackboneConfig:
    """Six layers of three groups: a pool, a projected block, a plain one, two linear layers."""
    layers = (
        ConvConfig("a", "an", 3, 6, pool=(2, 2, 0)),
        ConvConfig("b", "bn", 6, 9, stride=2),
        ConvConfig("c", "cn", 9, 9, shortcut="project", projection="p"),
        ConvConfig("d", "dn", 9, 6, kernel=1, padding=0),
        ConvConfig("e", "en", 6, 9, shortcut="identity"),
        ConvConfig("f", "fn", 9, 12),
    )
    return BackboneConfig("tiny", 8, layers, (7, 3), ("g", "h"), groups=3, pool_to=2)


def stream_backbone() -> BackboneConfig:
    """Seven layers of three groups: after the stem, blocks that add, that pad, and that add."""
    layers = (
        ConvConfig("a", "an", 3, 6),
        ConvConfig("b", "bn", 6, 9),
        ConvConfig("c", "cn", 9, 6, shortcut="identity"),
        ConvConfig("d", "dn", 6, 12, stride=2),
        ConvConfig("e", "en", 12, 12, shortcut="pad"),
        ConvConfig("f", "fn", 12, 6),
        ConvConfig("g", "gn", 6, 12, shortcut="identity"),
    )
    return BackboneConfig("stream", 6, layers, (3,), ("h",), groups=3)


def make_backbone(name: str) -> BackboneConfig:
    """One of `ALL`."""
    tiny = {"tiny": tiny_backbone, "stream": stream_backbone}
    return tiny[name]() if name in tiny else small_backbone(name)


def agent_config(
    form: str,
    backbone: BackboneConfig,
    encoding: int = 8,
    hidden: int = 8,
    looks: int = 0,
    views: Views = "image",
) -> AgentConfig:
    """An agent of any form; its paths are the narrowest, three random ones, and the widest."""
    if form != "paths":
        return AgentConfig(form, encoding, hidden)
    drawn = random_paths(backbone, 5, seed=7).numpy()
    order = path_macs(drawn, mac_table(backbone, AgentConfig()), agent=False).argsort()
    paths = tuple(tuple(path) for path in drawn[order].tolist())
    blend = BLEND if views == "both" else 0.0
    return AgentConfig("paths", encoding, hidden, paths, looks, views=views, blend=blend)


@torch.no_grad()
def random_network(
    backbone: BackboneConfig, seed: int = 0, agent: AgentConfig | None = None
) -> Network:
    """A network in evaluation mode; each input width has statistics of its own.

    The agent's weights are such that its choices differ among images.
    """
    torch.manual_seed(seed)
    network, k = Network(backbone, agent or AgentConfig(encoding=8, hidden=8)), backbone.groups
    for conv in (*network.convs, *network.projections.values()):
        conv.gamma.uniform_(0.5, 1.5)
        conv.beta.normal_(0, 0.3)
        conv.mean.normal_(0, 0.3)
        # The fewer inputs, the less they vary; so no width's signal dies away.
        conv.var.uniform_(0.4, 1).mul_(torch.linspace(0, 1, k + 1)[1:, None])
    network.eval().requires_grad_(False)
    if isinstance(network.agent, PathAgent):
        _spread_gains(network, network.agent)
    else:
        for parameter in network.agent.parameters():
            parameter.mul_(4)
    return network


def _spread_gains(network: Network, agent: PathAgent) -> None:
    """Let going on gain on some images and lose on others; on half, stopping is the best."""
    images, penalty = random_images(network.backbone, 64, seed=9), torch.full((64,), 0.2)
    for look in range(agent.config.deciding):
        seen = agent.seen(*network.look(images, look))
        gains, last = agent(look, seen, penalty), agent.layers(look)[-1]
        mean, deviation = gains.mean(dim=0), gains.std(dim=0)
        last.bias.sub_(mean).div_(deviation)
        last.weight.div_(deviation[:, None])
        last.bias.sub_(((gains - mean) / deviation).amax(dim=1).median())


def randomise_norm(norm: nn.BatchNorm2d) -> None:
    """Scale (of either sign), shift and statistics as a trained network might have them."""
    with torch.no_grad():
        norm.weight.uniform_(0.3, 1.5).mul_(torch.where(torch.rand_like(norm.weight) < 0.5, -1, 1))
        norm.bias.normal_(0, 0.3)
        norm.running_mean.normal_(0, 0.3)
        norm.running_var.uniform_(0.5, 2)


def random_images(backbone: BackboneConfig, n: int, seed: int = 0) -> Tensor:
    """(n, 3, H, W) of very different colours and contrasts."""
    generator = torch.Generator().manual_seed(seed)
    shape = (n, 3, backbone.image_size, backbone.image_size)
    contrast = torch.logspace(-1, 1, n)[:, None, None, None]
    colour = torch.randn((n, 3, 1, 1), generator=generator)
    return (torch.randn(shape, generator=generator) + colour) * contrast


def random_paths(backbone: BackboneConfig, n: int, seed: int = 0, *, whole: bool = False) -> Tensor:
    """(n, L) int64: random widths, after a first row all wide and a second all narrow.

    Args:
        whole: layer 0 is, as agents leave it that decide layer by layer.
    """
    k = backbone.groups
    generator = torch.Generator().manual_seed(seed)
    paths = torch.randint(1, k + 1, (n, backbone.n_layers), generator=generator)
    paths[0], paths[1] = k, 1
    if whole:
        paths[:, 0] = k
    return tied(backbone, paths)


def all_paths(backbone: BackboneConfig, *, whole: bool = False) -> Tensor:
    """Every path (P, L) int64, the narrowest first; `whole` as in `random_paths`."""
    k = backbone.groups
    first = [k] if whole else range(1, k + 1)
    free = [[1] if backbone.tied(i) else range(1, k + 1) for i in range(1, backbone.n_layers)]
    return tied(backbone, torch.tensor(list(itertools.product(first, *free))))


def tied(backbone: BackboneConfig, paths: Tensor) -> Tensor:
    """Paths (N, L) with their tied layers as wide as they must be."""
    for layer in filter(backbone.tied, range(backbone.n_layers)):
        paths[:, layer] = paths[:, layer - 2]
    return paths


def make_network(
    name: str, form: str = "priced", seed: int = 0, looks: int = 0, views: Views = "image"
) -> Network:
    """A network with random weights, and an agent of this form."""
    backbone = make_backbone(name)
    return random_network(backbone, seed, agent_config(form, backbone, looks=looks, views=views))
