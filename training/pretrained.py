"""Start from a bundle: train it on, or teach its features other classes.

A bundle's normalisation is folded into a scale and a shift. To train along whole batches again, the
statistics that were folded away are measured, layer by layer, and taken out of scale and shift: the
network in evaluation mode stays what the bundle is.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from models.bundle import Bundle
from models.config import BackboneConfig
from models.layers import EPS, WidthConv
from models.network import Network
from models.weights import convs, trainable
from training.batches import Batch, generator
from training.run import PATHS, Run
from training.supernet import sandwich

# A channel that was scaled to nothing has lost its statistics: it gets this scale instead.
LEAST_SCALE = 1e-4
# Batches on which statistics are measured, each along every path that the bundle knows, or, if it
# knows none, along so many random ones.
SETTLING_BATCHES, SETTLING_PATHS = 16, 16


def begin(run: Run) -> Network:
    """The network that a run starts from: random, or of pretrained weights or a bundle.

    Raises:
        ConfigError: pretrained weights cannot be read, or are of another network.
    """
    bundle = run.start
    if bundle is None:
        return run.network()
    torch.manual_seed(run.config.seed)
    network = run.placed(network_from(bundle, run.backbone, run.train.names))
    paths = [list(path) for path in bundle.card.agent.paths]
    random = generator(run.config.seed, PATHS)
    # The sandwich has the narrowest and the whole one, as the agent's first and last are.
    known = [*sandwich(run.backbone, 0 if paths else SETTLING_PATHS, random), *paths[1:-1]]
    settle(network, sample(run), known)
    return network


def sample(run: Run) -> Iterator[Batch]:
    """Training batches on which statistics are measured."""
    return islice(run.batches(run.config.supernet.batch_size).epoch(0), SETTLING_BATCHES)


def network_from(bundle: Bundle, backbone: BackboneConfig, labels: Sequence[str]) -> Network:
    """A trainable network with a bundle's weights; if its classes are others, the end is new."""
    network = trainable(replace(backbone, linears=bundle.card.backbone.linears), bundle.tensors)
    if tuple(bundle.card.labels) == tuple(labels):
        return network
    other = Network(backbone)
    other.convs, other.projections = network.convs, network.projections
    return other


@torch.no_grad()
def settle(network: Network, batches: Iterable[Batch], paths: Sequence[Sequence[int]]) -> None:
    """Measure the statistics that were folded away, each batch along each path.

    Rows that no path uses keep a mean of 0 and a variance of 1.
    """
    network.eval()
    modules = [conv for _, conv in convs(network) if isinstance(conv, WidthConv)]
    sums = {conv: conv.mean.new_zeros(3, *conv.mean.shape, dtype=torch.float64) for conv in modules}

    def record(conv: Any, inputs: tuple[Tensor, int, int], output: Tensor) -> None:
        _, in_width, channels = inputs
        here = sums[conv][:, in_width - 1, :channels]
        values = output.double()
        here[0] += values.numel() / channels
        here[1] += values.sum((0, 2, 3))
        here[2] += values.square().sum((0, 2, 3))

    hooks = [conv.register_forward_hook(record) for conv in modules]
    for batch in batches:
        for path in paths:
            network(batch.images, path)
    for hook in hooks:
        hook.remove()
    for conv in modules:
        _take_out(conv, *sums[conv])


def _take_out(conv: WidthConv, count: Tensor, total: Tensor, squares: Tensor) -> None:
    """Give a convolution whose scale and shift are known the statistics of its outputs."""
    seen = count > 0
    mean = torch.where(seen, total / count.clamp(min=1), 0.0)
    var = torch.where(seen, squares / count.clamp(min=1) - mean**2, 1.0).clamp(min=1e-8)
    scale, shift = (value.double() for value in conv.affine())
    scale = torch.where(scale.abs() < LEAST_SCALE, LEAST_SCALE, scale)
    # What the convolution gave before scale and shift.
    raw_mean, raw_var = (mean - shift) / scale, var / scale**2
    conv.mean.copy_(torch.where(seen, raw_mean, conv.mean.double()))
    conv.var.copy_(torch.where(seen, raw_var, conv.var.double()))
    deviation = (conv.var.double() + EPS).sqrt()
    conv.gamma.copy_(scale * deviation)
    conv.beta.copy_(shift + conv.mean.double() * scale)
