"""The stage of an agent that runs whole paths until what it has seen will do.

An episode is an image. The state is what the agent sees of the path just run, the action to stop
there or to run one of the later paths, the reward 1 if that puts a wrong answer right, -1 if the
reverse, minus the penalty times its price. The backbone is frozen and the paths are few, so every
action's outcome is recorded for every image, and nothing needs to be explored. What an action is
worth includes what follows: its return is taken from what the agent, as it is, would go on to do,
not from its own estimates, whose maximum is too high (as double Q-learning avoids; van Hasselt,
2010). Q-learning becomes a regression on these returns. Penalties are drawn anew in each step and
told to the agent, so one agent serves every budget.

Other rules learn the same agent from the same records, to compare:
- "loss": a path's answer is worth minus its loss, as in the paper;
- "gumbel": by gradient through hard Gumbel-softmax choices (Jang et al., ICLR 2017) of what they
  cost, loss and price;
- "supervised": by imitating who knows beforehand what every path answers, and so goes at once to
  the cheapest that is right, if it is worth its price.
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

# Recording takes far longer than learning, and has a checkpoint of its own.
RECORDS, STAGE = "agent-records", "agent"
RECORDING_BATCH = 500
# Weights may grow with what is seen of the training images alone.
WEIGHT_DECAY = 1e-3
# Of the softmax of values in the rules "gumbel" and "supervised".
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
    recorded, steps = run.checkpoints.load(RECORDS), settings.recordings * count
    with run.log(STAGE, steps + settings.epochs, steps if recorded else 0) as log:
        if recorded is None:
            images = chain.from_iterable(
                islice(batches.epoch(number), count) for number in range(settings.recordings)
            )
            records = _record(run, folded(network).to(run.device), images, log)
            run.checkpoints.save(RECORDS, records._asdict(), done=True)
        else:
            records = Records(**recorded.state)
        # The agent is so small that a CPU has learnt before a GPU has been told to.
        _learn(run, agent.cpu(), records, log)
        agent.to(run.device)
    run.checkpoints.save(STAGE, {"agent": agent.state_dict()}, done=True)


class Records(NamedTuple):
    """What was recorded of N images.

    Attributes:
        losses: (N, M) along each path. right: (N, M) bool.
        seen: of each path after which the agent decides (N, F), what it sees.
    """

    losses: Tensor
    right: Tensor
    seen: list[Tensor]

    def take(self, rows: Tensor) -> Records:
        """Some of the images."""
        return Records(self.losses[rows], self.right[rows], [seen[rows] for seen in self.seen])


@torch.no_grad()
def _record(run: Run, network: Network, batches: Iterable[Batch], log: StageLog) -> Records:
    parts = []
    for batch in batches:
        with run.autocast():
            parts.append(rewards(network, batch.images, batch.labels))
        log.advance(len(batch.labels))
    losses, right, seen = zip(*parts, strict=True)
    looks = [torch.cat(look).cpu() for look in zip(*seen, strict=True)]
    return Records(torch.cat(losses).cpu(), torch.cat(right).cpu(), looks)


def rewards(network: Network, images: Tensor, labels: Tensor) -> Records:
    """Send images (n, 3, H, W) along each of the agent's paths."""
    agent = network.agent
    assert isinstance(agent, PathAgent)
    answers, seen = zip(*(network.look(images, path) for path in agent.paths.tolist()), strict=True)
    losses = [F.cross_entropy(answer.float(), labels, reduction="none") for answer in answers]
    right = [answer.argmax(dim=1) == labels for answer in answers]
    looks = list(seen[: len(agent.looks)])
    return Records(torch.stack(losses, dim=1), torch.stack(right, dim=1), looks)


def _learn(run: Run, agent: PathAgent, records: Records, log: StageLog) -> None:
    settings = run.config.agent
    scales = [_scale(seen) for seen in records.seen]
    looks = zip(records.seen, scales, strict=True)
    records = records._replace(seen=[(seen - mean) / std for seen, (mean, std) in looks])
    count, size = len(records.right), min(settings.batch_size, len(records.right))
    torch.manual_seed(run.config.seed + settings.seed)
    optimizer = torch.optim.AdamW(
        agent.parameters(), lr=settings.learning_rate, weight_decay=WEIGHT_DECAY
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, settings.learning_rate, total_steps=max(settings.epochs * (count // size), 1)
    )
    low, high = settings.penalties
    for epoch in range(settings.epochs):
        random = generator(run.config.seed + settings.seed, LEARNING, epoch)
        errors = []
        for rows in minibatches(count, size, random):
            penalty = draw_penalty(size, low, high, random)
            error = RULES[settings.rule](agent, records.take(rows), penalty)
            optimizer.zero_grad()
            error.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            errors.append(error.item())
        log.advance(0)
        log.write(error=sum(errors) / len(errors), **_policy(agent, records, settings.rule))
    for look, (mean, std) in enumerate(scales):
        standardise(agent, look, mean, std)


def _scale(seen: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of features (N, F)."""
    deviation = seen.std(dim=0)
    # What never changed says nothing, and what it would say if it did, nobody has learnt.
    deviation[deviation < 1e-4] = torch.inf
    return seen.mean(dim=0), deviation


def _right(agent: PathAgent, records: Records, penalty: Tensor) -> Tensor:
    return q_error(agent, records.seen, records.right.float(), penalty)


def _loss(agent: PathAgent, records: Records, penalty: Tensor) -> Tensor:
    return q_error(agent, records.seen, -records.losses, penalty)


def q_error(agent: PathAgent, seen: list[Tensor], worth: Tensor, penalty: Tensor) -> Tensor:
    """Squared error of what the agent expects, against the returns under its own choices.

    Args:
        seen: of each look (n, F). worth: (n, M), of each path's answer. penalty: (n,).
    """
    error = torch.zeros(())
    # What follows each path until the agent stops.
    onward = torch.zeros_like(worth)
    for look in reversed(range(len(agent.looks))):
        later = slice(look + 1, None)
        gain = agent(look, seen[look], penalty)
        returns = worth[:, later] - worth[:, look, None] + onward[:, later]
        error = error + F.mse_loss(gain, returns)
        chosen = agent.values(look, gain.detach(), penalty).argmax(dim=1, keepdim=True)
        onward[:, look] = agent.values(look, returns, penalty).gather(1, chosen)[:, 0]
    return error


def _gumbel(agent: PathAgent, records: Records, penalty: Tensor) -> Tensor:
    # What each path costs if it is run, with all that follows; the first is paid by all alike.
    costs = list(records.losses.unbind(dim=1))
    for look in reversed(range(len(agent.looks))):
        values = agent.values(look, agent(look, records.seen[look], penalty), penalty)
        later = torch.stack(costs[look + 1 :], dim=1) + penalty[:, None] * agent.price[look + 1 :]
        options = torch.cat([costs[look][:, None], later], dim=1)
        chosen = F.gumbel_softmax(values / TEMPERATURE, hard=True)
        costs[look] = (chosen * options).sum(dim=1)
    return costs[0].mean()


def _supervised(agent: PathAgent, records: Records, penalty: Tensor) -> Tensor:
    error = torch.zeros(())
    # What an image is worth on each path if it then goes the best way.
    worth = records.right.float()
    for look in reversed(range(len(agent.looks))):
        options = agent.values(look, worth[:, look + 1 :] - worth[:, look, None], penalty)
        values = agent.values(look, agent(look, records.seen[look], penalty), penalty)
        error = error + F.cross_entropy(values / TEMPERATURE, options.argmax(dim=1))
        worth[:, look] += options.max(dim=1).values
    return error


RULES = {"right": _right, "loss": _loss, "gumbel": _gumbel, "supervised": _supervised}


@torch.no_grad()
def follow(agent: PathAgent, seen: list[Tensor], penalty: Tensor) -> tuple[Tensor, Tensor]:
    """Number (N,) of the path at which the agent stops, and what going there was charged (N,)."""
    last = torch.zeros(len(penalty), dtype=torch.int64)
    charged = torch.zeros_like(penalty)
    no_limit = torch.full_like(last, torch.iinfo(last.dtype).max)
    for look, features in enumerate(seen):
        chosen = agent.choose(look, agent(look, features, penalty), penalty, no_limit)
        moves = (last == look) & (chosen > look)
        last = torch.where(moves, chosen, last)
        charged += moves * agent.price[chosen]
    return last, charged


@torch.no_grad()
def _policy(agent: PathAgent, records: Records, rule: str) -> dict[str, float]:
    """Loss, compute and reward of the agent's choices at one penalty in the middle of their range.

    Records are of training images, which the backbone knows: real ones gain less.
    """
    penalty = torch.full((len(records.losses),), PENALTY_MIDPOINT)
    last, charged = follow(agent, records.seen, penalty)
    worth = records.right.float() if rule == "right" else -records.losses
    gained = worth.gather(1, last[:, None]).mean() - worth[:, 0].mean()
    compute = charged.mean().item()
    return {
        "loss": records.losses.gather(1, last[:, None]).mean().item(),
        "compute": compute,
        "reward": gained.item() - PENALTY_MIDPOINT * compute,
    }


@torch.no_grad()
def standardise(agent: PathAgent, look: int, mean: Tensor, deviation: Tensor) -> None:
    """Let a decision that learnt from standardised features read them as they are."""
    first = agent.layers(look)[0]
    weight = first.weight[:, : len(mean)]  # The penalty comes after what is seen, as it is.
    weight.div_(deviation)
    first.bias.sub_(weight @ mean)
