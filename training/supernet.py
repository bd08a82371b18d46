"""Supernet: one set of weights that serves every path.

Each step trains the full network, the narrowest one and random paths between (sandwich rule), the
narrow ones taught by the full one (in-place distillation; Yu and Huang, US-Nets, ICCV 2019). The
loss is the full network's cross-entropy, labels smoothed, plus that of each other path against the
full network's probabilities. Every sub-network is really sliced: a narrow path costs what it costs
in serving.

At the end the normalisation's statistics are estimated anew over mixed paths. Fine-tuning says
when they are frozen, as they are folded for serving. (Freezing them before the learning rate has
fallen was tried: without their normalising the weights diverge.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from models.config import BackboneConfig
from models.layers import WidthConv
from models.network import Network
from training.batches import Batch, cut_mix, generator
from training.run import MIXING, PATHS, Run

STAGE = "supernet"
MAX_GRADIENT_NORM = 3.0
# Statistics differ from path to path: a long memory averages over many of them.
STATISTICS_STEPS, STATISTICS_MOMENTUM = 300, 0.03
# Share of the steps in which the learning rate rises.
WARMUP = 0.1


def train(run: Run, network: Network) -> None:
    """Run the stage, or what is left of it; the network is changed in place."""
    settings = run.config.supernet
    batches = run.batches(settings.batch_size, as_served=False)
    steps = settings.epochs * len(batches)
    optimizer = sgd(network, settings.learning_rate, settings.weight_decay)
    start = restore(run, STAGE, network, optimizer)
    backward = run.backward(network)
    network.train()
    with run.log(STAGE, steps, start) as log:
        for step, batch in enumerate(run.steps(batches, 0, start, steps), start):
            set_learning_rate(optimizer, learning_rate(step / steps, settings.learning_rate))
            random = generator(run.config.seed, PATHS, step)
            paths = sandwich(network.backbone, settings.random_paths, random)
            mixing = generator(run.config.seed, MIXING, step)
            loss, right, _ = backward(*mixed(run, batch, mixing), paths)
            update(optimizer)
            log.advance(len(batch.images))
            if log.step % 50 == 0 or log.step == steps:
                log.write(loss=loss.item(), accuracy=right.item() / len(batch.images))
            if log.step == steps:
                served = run.batches(settings.batch_size)
                sample = islice(served.epoch(settings.epochs), STATISTICS_STEPS)
                random = generator(run.config.seed, PATHS, steps)
                reestimate_statistics(
                    network, sample, partial(draw_path, network.backbone, random), run.autocast()
                )
            if log.step % len(batches) == 0:
                keep(run, STAGE, network, optimizer, log.step)
    network.eval()


def mixed(run: Run, batch: Batch, random: torch.Generator) -> tuple[Tensor, Tensor]:
    """Images and labels of a batch, or, as often as the settings say, mixed ones and targets."""
    if torch.rand((), generator=random) < run.config.supernet.cutmix:
        return cut_mix(batch.images, batch.labels, run.backbone.classes, random)
    return batch.images, batch.labels


def sgd(network: Network, rate: float, weight_decay: float) -> torch.optim.Optimizer:
    """Nesterov momentum for all but the agent; normalisation and biases are not decayed."""
    named = [(n, p) for n, p in network.named_parameters() if not n.startswith("agent.")]
    decayed = {n for n, _ in named if n.endswith(".weight")}
    groups: list[dict[str, Any]] = [
        {"params": [p for n, p in named if n in decayed]},
        {"params": [p for n, p in named if n not in decayed], "weight_decay": 0.0},
    ]
    fused = named[0][1].is_cuda
    return torch.optim.SGD(
        groups, lr=rate, momentum=0.9, nesterov=True, weight_decay=weight_decay, fused=fused
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the rate of all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = rate


def update(optimizer: torch.optim.Optimizer) -> None:
    """One step along the gradients, which are bounded and then cleared."""
    # Not the network's: the agent's are left over from its own stage, and lost by a resumed run.
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    torch.nn.utils.clip_grad_norm_(parameters, MAX_GRADIENT_NORM)
    optimizer.step()
    # On a GPU captured steps add to gradients where they are.
    optimizer.zero_grad(set_to_none=not parameters[0].is_cuda)


def restore(
    run: Run, stage: str, network: torch.nn.Module, optimizer: torch.optim.Optimizer
) -> int:
    """Load a stage's checkpoint, if there is one, and return the steps it had completed.

    The network keeps its agent.
    """
    checkpoint = run.checkpoints.load(stage)
    if checkpoint is None:
        return 0
    network.load_state_dict(checkpoint.state["network"], strict=False)
    optimizer.load_state_dict(checkpoint.state["optimizer"])
    return checkpoint.step


def keep(
    run: Run, stage: str, network: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int
) -> None:
    """Checkpoint a stage."""
    backbone = {k: v for k, v in network.state_dict().items() if not k.startswith("agent.")}
    state = {"network": backbone, "optimizer": optimizer.state_dict()}
    run.checkpoints.save(stage, state, step=step)


def draw_path(backbone: BackboneConfig, random: torch.Generator) -> list[int]:
    """A random path: widths scattered around a level that is itself drawn.

    Independent widths would all cost about the same; a drawn level covers cheap and dear paths.
    """
    path: list[int] = draw_paths(1, backbone, random)[0].tolist()
    return path


def draw_paths(images: int, backbone: BackboneConfig, random: torch.Generator) -> Tensor:
    """Random paths (N, L) int64."""
    k, n_layers = backbone.groups, backbone.n_layers
    level = torch.rand(images, 1, generator=random) * (k + 1)
    widths = level + torch.randn(images, n_layers, generator=random) * 0.25 * k
    return tie(widths.round().clamp(1, k).long(), backbone)


def tie(paths: Tensor, backbone: BackboneConfig) -> Tensor:
    """Paths (N, L), changed in place so that tied layers are as wide as what they are tied to."""
    for layer in range(backbone.n_layers):
        if backbone.tied(layer):
            paths[:, layer] = paths[:, layer - 2]
    return paths


def sandwich(
    backbone: BackboneConfig, random_paths: int, random: torch.Generator
) -> list[list[int]]:
    """The full path first, then the narrowest, then random ones."""
    n_layers = backbone.n_layers
    drawn = [draw_path(backbone, random) for _ in range(random_paths)]
    return [[backbone.groups] * n_layers, [1] * n_layers, *drawn]


@torch.no_grad()
def reestimate_statistics(
    network: Network,
    batches: Iterable[Batch],
    draw: Callable[[], list[int]],
    autocast: torch.autocast,
) -> None:
    """Estimate the statistics of every input width anew, each batch along a path that is drawn."""
    network.train()
    convs = [module for module in network.modules() if isinstance(module, WidthConv)]
    usual = [conv.momentum for conv in convs]
    for conv in convs:
        conv.momentum = STATISTICS_MOMENTUM
    for batch in batches:
        with autocast:
            network(batch.images, draw())
    for conv, momentum in zip(convs, usual, strict=True):
        conv.momentum = momentum


def learning_rate(progress: float, peak: float) -> float:
    """Linear warm-up to `peak`, then linear to zero; `progress` in [0, 1]."""
    if progress < WARMUP:
        return peak * progress / WARMUP
    return peak * (1 - progress) / (1 - WARMUP)
