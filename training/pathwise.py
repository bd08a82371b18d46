"""The stage of an agent that chooses among whole paths.

An episode is one decision. The state is what the glance shows, the action a path, the reward 1 if
it puts a wrong answer of the glance's right, -1 if the reverse, minus the penalty times its price.
The backbone is frozen and the paths are few, so the reward of every action is recorded for every
image: Q-learning, of which one step has no next state, becomes a regression on all of them. Nothing
needs to be explored, and the price, being known, is not learnt: one agent serves every penalty.

Two other rules learn the same agent from the same records, to compare:
- "loss": the reward is by how much the path's loss is below the glance's, as in the paper;
- "gumbel": by gradient through hard Gumbel-softmax choices (Jang et al., ICLR 2017) of what they
  cost, loss and price, at drawn penalties.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import chain, islice
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from models.agent import PathAgent
from models.config import PENALTY_MIDPOINT
from models.network import Network
from models.weights import folded
from training.batches import Batch, generator
from training.qlearning import draw_penalty, minibatches
from training.run import LEARNING, Run
from training.runlog import StageLog

STAGE = "agent"
RECORDING_BATCH = 500
# Weights may grow with what is seen of the training images alone.
WEIGHT_DECAY = 1e-3
# Of the softmax whose choices are sampled by the rule "gumbel", in units of the loss.
TEMPERATURE = 0.1


def train(run: Run, network: Network) -> None:
    """Run the stage on a frozen backbone, or take what it had learnt; the agent is changed."""
    agent = network.agent
    assert isinstance(agent, PathAgent)
    checkpoint = run.checkpoints.load(STAGE)
    if checkpoint is not None:
        agent.load_state_dict(checkpoint.state["agent"])
        return
    settings = run.config.agent
    batches = run.batches(RECORDING_BATCH)
    count = min(math.ceil(settings.images / RECORDING_BATCH), len(batches))
    with run.log(STAGE, settings.recordings * count + settings.epochs, 0) as log:
        images = chain.from_iterable(
            islice(batches.epoch(number), count) for number in range(settings.recordings)
        )
        records = _record(run, folded(network), images, log)
        _learn(run, agent, records, log)
    run.checkpoints.save(STAGE, {"agent": agent.state_dict()}, done=True)


class Records(NamedTuple):
    """What was recorded of N images.

    Attributes:
        seen: (N, F), what the agent sees. losses: (N, M) along each path. right: (N, M) bool.
    """

    seen: Tensor
    losses: Tensor
    right: Tensor


@torch.no_grad()
def _record(run: Run, network: Network, batches: Iterable[Batch], log: StageLog) -> Records:
    parts = []
    for batch in batches:
        with run.autocast():
            parts.append(rewards(network, batch.images, batch.labels))
        log.advance(len(batch.labels))
    return Records(*(torch.cat(column) for column in zip(*parts, strict=True)))


def rewards(network: Network, images: Tensor, labels: Tensor) -> Records:
    """Send images (n, 3, H, W) along each of the agent's paths."""
    assert isinstance(network.agent, PathAgent)
    logits, seen = network.glance(images)
    answers = [logits, *(network(images, path) for path in network.agent.paths[1:].tolist())]
    losses = [F.cross_entropy(answer.float(), labels, reduction="none") for answer in answers]
    right = [answer.argmax(dim=1) == labels for answer in answers]
    return Records(seen, torch.stack(losses, dim=1), torch.stack(right, dim=1))


def _learn(run: Run, agent: PathAgent, records: Records, log: StageLog) -> None:
    settings = run.config.agent
    mean, deviation = records.seen.mean(dim=0), records.seen.std(dim=0)
    # What never changed says nothing, and what it would say if it did, nobody has learnt.
    deviation[deviation < 1e-4] = torch.inf
    records = records._replace(seen=(records.seen - mean) / deviation)
    count, (low, high) = len(records.seen), settings.penalties
    size = min(settings.batch_size, count)
    torch.manual_seed(run.config.seed)
    optimizer = torch.optim.AdamW(
        agent.parameters(), lr=settings.learning_rate, weight_decay=WEIGHT_DECAY
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=max(settings.epochs * (count // size), 1)
    )
    for epoch in range(settings.epochs):
        random = generator(run.config.seed, LEARNING, epoch)
        errors = []
        for rows in minibatches(count, size, random):
            some = Records(*(column[rows] for column in records))
            penalty = draw_penalty(size, low, high, random)
            error = RULES[settings.rule](agent, some, penalty)
            optimizer.zero_grad()
            error.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            errors.append(error.item())
        log.advance(0)
        log.write(error=sum(errors) / len(errors), **_policy(agent, records))
    standardise(agent, mean, deviation)


def _right(agent: PathAgent, records: Records, _penalty: Tensor) -> Tensor:
    right = records.right.float()
    return F.mse_loss(agent(records.seen), right[:, 1:] - right[:, :1])


def _loss(agent: PathAgent, records: Records, _penalty: Tensor) -> Tensor:
    return F.mse_loss(agent(records.seen), records.losses[:, :1] - records.losses[:, 1:])


def _gumbel(agent: PathAgent, records: Records, penalty: Tensor) -> Tensor:
    values = agent.values(agent(records.seen), penalty)
    chosen = F.gumbel_softmax(values / TEMPERATURE, hard=True)
    return (chosen * (records.losses + penalty[:, None] * agent.price)).sum(dim=1).mean()


RULES = {"right": _right, "loss": _loss, "gumbel": _gumbel}


@torch.no_grad()
def _policy(agent: PathAgent, records: Records) -> dict[str, float]:
    """Loss, compute and reward of the agent's choices at one penalty in the middle of their range.

    Records are of training images, which the backbone knows: real ones gain less.
    """
    penalty = torch.full((len(records.seen),), PENALTY_MIDPOINT)
    chosen = agent.values(agent(records.seen), penalty).argmax(dim=1, keepdim=True)
    loss = records.losses.gather(1, chosen).mean().item()
    price = agent.price[chosen].mean().item()
    reward = records.losses[:, 0].mean().item() - loss - PENALTY_MIDPOINT * price
    return {"loss": loss, "compute": price, "reward": reward}


@torch.no_grad()
def standardise(agent: PathAgent, mean: Tensor, deviation: Tensor) -> None:
    """Let an agent that learnt from standardised features read them as they are."""
    first = agent.hidden[0]
    assert isinstance(first, torch.nn.Linear)
    first.weight.div_(deviation)
    first.bias.sub_(first.weight @ mean)
