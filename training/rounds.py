"""Backbone and agent in turn: the backbone is fine-tuned along the paths that the agent takes.

Statistics are frozen, as they are served. Each step trains the full network, which teaches, and
each image's own path under a penalty drawn for it, and one random path so that the paths that
the agent may want next do not decay.
"""

from __future__ import annotations

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
    set_learning_rate,
    sgd,
    update,
)


def train(run: Run, network: Network, stage: str, number: int) -> None:
    """Run the stage, or what is left of it; the backbone is changed in place."""
    settings, supernet = run.config.rounds, run.config.supernet
    batches = run.batches(supernet.batch_size)
    steps = settings.epochs * len(batches)
    optimizer = sgd(network, settings.learning_rate, supernet.weight_decay)
    start = restore(run, stage, network, optimizer)
    network.eval()
    first_epoch = supernet.epochs + 1 + number * settings.epochs
    with run.log(stage, steps, start) as log:
        for step, batch in enumerate(run.steps(batches, first_epoch, start, steps), start):
            set_learning_rate(optimizer, settings.learning_rate * (1 - step / steps))
            random = generator(run.config.seed, PATHS, first_epoch, step)
            loss, right, fraction = _step(run, network, batch, random)
            update(optimizer)
            log.advance(len(batch.images))
            if log.step % 50 == 0 or log.step == steps:
                log.write(loss=loss, accuracy=right / len(batch.images), mean_width=fraction)
            if log.step % len(batches) == 0:
                keep(run, stage, network, optimizer, log.step, done=log.step == steps)


def _step(
    run: Run, network: Network, batch: Batch, random: torch.Generator
) -> tuple[float, int, float]:
    """Add the gradients of one batch; returns loss, right answers and mean width of the paths."""
    backbone, autocast = network.backbone, run.autocast()
    k = backbone.groups
    paths = [[k] * backbone.n_layers, draw_path(backbone.n_layers, k, random)]
    loss, right, teacher = backward(
        network,
        batch.images,
        batch.labels,
        paths,
        smoothing=run.config.supernet.label_smoothing,
        autocast=autocast,
    )
    chooser = Follower(network, _penalties(run, len(batch.images), random))
    with autocast:
        logits, trace = network.run(batch.images, chooser)
    F.cross_entropy(logits.float(), teacher).backward()  # type: ignore[no-untyped-call]
    return loss, right, trace.widths.float().mean().item()


def _penalties(run: Run, images: int, random: torch.Generator) -> Tensor:
    settings = run.config.agent
    if settings.form == "paper":
        return torch.zeros(images)
    low, high = settings.penalties
    return draw_penalty(images, low, high, random)


class Follower(Greedy):
    """The agent's own choice, through which no gradient flows."""

    def __init__(self, network: Network, penalty: Tensor) -> None:
        super().__init__(
            network.agent, network.table, penalty, torch.ones(len(penalty), dtype=torch.float64)
        )

    @torch.no_grad()
    def __call__(self, layer: int, pooled: Tensor, before: Tensor) -> Tensor:
        """Widths (N,) of a layer."""
        return super().__call__(layer, pooled, before)
