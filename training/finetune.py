"""Fine-tuning along mixed paths: first random ones, later those that the agent takes.

In the supernet's stage a whole batch shares a path and brings its own statistics. Here these are
frozen, as they are served, and a batch holds many paths, as in serving. Each step trains the full
network, which teaches, the narrowest one, and the images' own paths.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from models.network import Greedy, Network
from training.batches import Batch, generator
from training.qlearning import draw_penalty
from training.run import PATHS, Run
from training.supernet import (
    backward,
    draw_path,
    keep,
    restore,
    sandwich,
    set_learning_rate,
    sgd,
    update,
)

# Images that share a random path.
SHARING = 16


def train(
    run: Run,
    network: Network,
    stage: str,
    *,
    epochs: int,
    learning_rate: float,
    random_share: float,
    first_epoch: int,
) -> None:
    """Run the stage, or what is left of it; the backbone is changed in place.

    Args:
        learning_rate: at the start; it falls to zero.
        random_share: of the images that take a random path, the others take the agent's.
        first_epoch: number of the first epoch in the order of batches.
    """
    supernet = run.config.supernet
    batches = run.batches(supernet.batch_size)
    steps = epochs * len(batches)
    optimizer = sgd(network, learning_rate, supernet.weight_decay)
    start = restore(run, stage, network, optimizer)
    network.eval()
    with run.log(stage, steps, start) as log:
        for step, batch in enumerate(run.steps(batches, first_epoch, start, steps), start):
            set_learning_rate(optimizer, learning_rate * (1 - step / steps))
            random = generator(run.config.seed, PATHS, first_epoch, step)
            loss, right, width = _step(run, network, batch, random_share, random)
            update(optimizer)
            log.advance(len(batch.images))
            if log.step % 50 == 0 or log.step == steps:
                log.write(loss=loss, accuracy=right / len(batch.images), mean_width=width)
            if log.step % len(batches) == 0:
                keep(run, stage, network, optimizer, log.step, done=log.step == steps)


def _step(
    run: Run, network: Network, batch: Batch, random_share: float, random: torch.Generator
) -> tuple[float, int, float]:
    """Add the gradients of one batch; returns loss, right answers and mean width of the paths."""
    loss, right, teacher = backward(
        network,
        batch.images,
        batch.labels,
        sandwich(network, 0, random),
        smoothing=run.config.supernet.label_smoothing,
        autocast=run.autocast(),
    )
    randomly = round(random_share * len(batch.images))
    _along_random_paths(run, network, batch.images[:randomly], teacher[:randomly], random)
    width = _along_agents_paths(run, network, batch.images[randomly:], teacher[randomly:], random)
    return loss, right, width


def _along_random_paths(
    run: Run, network: Network, images: Tensor, teacher: Tensor, random: torch.Generator
) -> None:
    """Add the gradients of images along random paths; a few images share one, to be sliced."""
    backbone = network.backbone
    for start in range(0, len(images), SHARING):
        some = slice(start, start + SHARING)
        path = draw_path(backbone.n_layers, backbone.groups, random)
        with run.autocast():
            logits = network(images[some], path).float()
        loss = F.cross_entropy(logits, teacher[some], reduction="sum")
        (loss / run.config.supernet.batch_size).backward()  # type: ignore[no-untyped-call]


def _along_agents_paths(
    run: Run, network: Network, images: Tensor, teacher: Tensor, random: torch.Generator
) -> float:
    """Add the gradients of images along the agent's paths; returns the paths' mean width."""
    if not len(images):
        return math.nan
    follower = Follower(network, _penalties(run, len(images), random))
    with run.autocast():
        logits, trace = network.run(images, follower, glance=run.agent.glance)
    loss = F.cross_entropy(logits.float(), teacher, reduction="sum")
    (loss / run.config.supernet.batch_size).backward()  # type: ignore[no-untyped-call]
    return trace.widths.float().mean().item()


def _penalties(run: Run, images: int, random: torch.Generator) -> Tensor:
    settings = run.config.agent
    if settings.form == "paper":
        return torch.zeros(images)
    low, high = settings.penalties
    return draw_penalty(images, low, high, random)


class Follower(Greedy):
    """The agent's own choice, through which no gradient flows."""

    def __init__(self, network: Network, penalty: Tensor) -> None:
        cap = torch.ones(len(penalty), dtype=torch.float64)
        super().__init__(network.agent, network.table, penalty, cap)

    @torch.no_grad()
    def __call__(self, layer: int, pooled: Tensor, before: Tensor) -> Tensor:
        """Widths (N,) of a layer."""
        return super().__call__(layer, pooled, before)
