"""Fine-tuning along many paths: those that the agent will choose from, or random ones.

Each step trains the full network, which teaches, the narrowest one, and some of the agent's paths,
or many random ones, which divide the batch among them. As in the supernet's stage a batch along one
of the agent's paths first brings its own statistics; in the last epochs, and along random paths in
all, they are frozen, as they are served.
"""

from __future__ import annotations

import math
from itertools import chain, islice

import torch
from torch import Tensor
from torch.nn import functional as F

from models.network import Network
from training.batches import Batches, generator
from training.run import MIXING, PATHS, Run
from training.supernet import (
    STATISTICS_STEPS,
    draw_path,
    keep,
    mixed,
    reestimate_statistics,
    restore,
    sandwich,
    set_learning_rate,
    sgd,
    update,
)

STAGE = "finetune"
# Of the agent's paths, those that are trained in a step; images that share a random path.
TOGETHER, SHARING = 2, 16
# Share of the epochs along the agent's paths in which statistics are frozen.
FROZEN_SHARE = 0.25


def train(run: Run, network: Network, paths: list[list[int]] | None) -> None:
    """Run the stage, or what is left of it; the backbone is changed in place.

    Args:
        paths: the agent's, beside the narrowest and the whole; None to train random ones.
    """
    settings, supernet = run.config.finetune, run.config.supernet
    batches, first_epoch = run.batches(supernet.batch_size), supernet.epochs + 1
    early = run.batches(supernet.batch_size, as_served=False)
    steps = settings.epochs * len(batches)
    optimizer = sgd(network, settings.learning_rate, supernet.weight_decay)
    start = restore(run, STAGE, network, optimizer)
    backward = run.backward(network)
    frozen = math.ceil(FROZEN_SHARE * settings.epochs) if paths is not None else settings.epochs
    frozen_from = steps - frozen * len(batches)
    # Of a bundle that is not trained at all, statistics stay what they are.
    if paths is not None and start == frozen_from == 0 and (steps or supernet.epochs):
        _estimate(run, network, batches, paths)
    with run.log(STAGE, steps, start) as log:
        shown = chain(
            run.steps(early, first_epoch, start, frozen_from),
            run.steps(batches, first_epoch, max(start, frozen_from), steps),
        )
        for step, batch in enumerate(shown, start):
            set_learning_rate(optimizer, settings.learning_rate * (1 - step / steps))
            random = generator(run.config.seed, PATHS, first_epoch, step)
            network.train(step < frozen_from)
            if network.training:
                mixing = generator(run.config.seed, MIXING, first_epoch, step)
                images, labels = mixed(run, batch, mixing)
            else:
                images, labels = batch.images, batch.labels
            own = some(paths or [], TOGETHER, random)
            together = [*sandwich(network.backbone, 0, random), *own]
            loss, right, teacher = backward(images, labels, together)
            if paths is None:
                _along_random_paths(run, network, images, teacher, random)
            update(optimizer)
            log.advance(len(batch.images))
            if log.step % 50 == 0 or log.step == steps:
                log.write(loss=loss.item(), accuracy=right.item() / len(batch.images))
            if paths is not None and log.step == frozen_from:
                _estimate(run, network, batches, paths)
            if log.step % len(batches) == 0:
                keep(run, STAGE, network, optimizer, log.step)
    network.eval()


def _estimate(run: Run, network: Network, batches: Batches, paths: list[list[int]]) -> None:
    """Estimate the statistics anew along the paths and those that are always trained."""
    epoch = run.config.supernet.epochs + 1
    random = generator(run.config.seed, PATHS, epoch)
    trained = [*sandwich(network.backbone, 0, random), *paths]
    sample = islice(batches.epoch(epoch), STATISTICS_STEPS)
    reestimate_statistics(network, sample, lambda: some(trained, 1, random)[0], run.autocast())


def some(paths: list[list[int]], count: int, random: torch.Generator) -> list[list[int]]:
    """`count` of the paths, in random order."""
    order = torch.randperm(len(paths), generator=random)[:count]
    return [paths[number] for number in order.tolist()]


def _along_random_paths(
    run: Run, network: Network, images: Tensor, teacher: Tensor, random: torch.Generator
) -> None:
    parts = zip(torch.split(images, SHARING), torch.split(teacher, SHARING), strict=True)
    for few, taught in parts:
        path = draw_path(network.backbone, random)
        with run.autocast():
            logits = network(few, path).float()
        loss = F.cross_entropy(logits, taught, reduction="sum") / len(images)
        loss.backward()  # type: ignore[no-untyped-call]
