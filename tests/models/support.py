"""Small networks with random weights and statistics, and random paths through them."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models import backbones
from models.config import AgentConfig, BackboneConfig, ConvConfig
from models.network import Network

# Name → width factor and image size: each small enough for milliseconds, every layer prunable.
SMALL = {
    "mcifarnet": (0.125, 12),
    "vgg16": (0.0625, 32),
    "resnet20": (0.25, 8),
    "resnet18": (0.0625, 32),
}


def small_backbone(name: str, classes: int = 5) -> BackboneConfig:
    """A narrow backbone on small images."""
    width, image_size = SMALL[name]
    return backbones.build(name, classes, width=width, image_size=image_size)


def tiny_backbone() -> BackboneConfig:
    """Five layers of three groups: a pool, a block with a projection, two linear layers."""
    layers = (
        ConvConfig("a", "an", 3, 6, pool=(2, 2, 0)),
        ConvConfig("b", "bn", 6, 9, stride=2, reads="stream"),
        ConvConfig("c", "cn", 9, 9, shortcut="project", projection="p"),
        ConvConfig("d", "dn", 9, 6, kernel=1, padding=0, reads="stream"),
        ConvConfig("e", "en", 6, 12),
    )
    return BackboneConfig("tiny", 8, layers, (7, 3), ("f", "g"), groups=3, pool_to=2)


def random_network(
    backbone: BackboneConfig, seed: int = 0, agent: AgentConfig | None = None
) -> Network:
    """A network in evaluation mode; each input width has statistics of its own.

    The agent's weights are large, so that its choices differ among images.
    """
    torch.manual_seed(seed)
    network, k = Network(backbone, agent or AgentConfig(encoding=8, hidden=8)), backbone.groups
    with torch.no_grad():
        for conv in network.convs:
            conv.gamma.uniform_(0.5, 1.5)
            conv.beta.normal_(0, 0.3)
            conv.mean.normal_(0, 0.3)
            # The fewer inputs, the less they vary; so no width's signal dies away.
            conv.var.uniform_(0.4, 1).mul_(torch.linspace(0, 1, k + 1)[1:, None])
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                randomise_norm(module)
        for parameter in network.agent.parameters():
            parameter.mul_(4)
    return network.eval().requires_grad_(False)


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


def random_paths(backbone: BackboneConfig, n: int, seed: int = 0) -> Tensor:
    """(n, L) int64: random widths, after a first row all wide and a second all narrow."""
    k = backbone.groups
    generator = torch.Generator().manual_seed(seed)
    paths = torch.randint(1, k + 1, (n, backbone.n_layers), generator=generator)
    paths[0], paths[1], paths[:, 0] = k, 1, k
    return paths
