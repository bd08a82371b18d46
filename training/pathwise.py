"""The stage of an agent that runs whole paths until what it has seen will do.

An episode is an image. The state is what the agent sees after the path just run, the action to stop
there or to run one of the later paths, the reward 1 if that puts a wrong answer right, -1 if the
reverse, minus the penalty times its price. The backbone is frozen and the paths are few, so what
every path answers is recorded for every image, and nothing needs to be explored. What an action is
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
from dataclasses import replace
from itertools import chain, combinations, islice
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models.agent import PathAgent
from models.config import PENALTY_MIDPOINT
from models.network import Network, blended
from models.weights import folded
from training.batches import Batch, generator
from training.measure import Policy
from training.qlearning import draw_penalty, minibatches
from training.run import LEARNING, Run
from training.runlog import StageLog

# Recording takes far longer than learning, and has a checkpoint of its own.
RECORDS, STAGE = "agent-records", "agent"
RECORDING_BATCH = 500
# Weights may grow with what is seen of the training images alone.
WEIGHT_DECAY = 1e-3
# What the answer before may count in the next where two views are looked at. A path that is much
# better than the one before is worse for its opinion; one that is hardly better gains by it.
BLENDS = (0.0, 1 / 6, 1 / 3)
# Of the softmax of values in the rules "gumbel" and "supervised".
TEMPERATURE = 0.1


def train(run: Run, network: Network) -> None:
    """Run the stage on a frozen backbone, or take what it had learnt; the agent is changed."""
    agent = network.agent
    assert isinstance(agent, PathAgent)
    checkpoint = run.checkpoints.load(STAGE)
    if checkpoint is not None:
        agent.load_state_dict(checkpoint.state["agent"])
        agent.config = replace(agent.config, blend=checkpoint.state["blend"])
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
            run.checkpoints.save(RECORDS, records._asdict())
        else:
            records = Records(**recorded.state)
        if settings.blend is None and agent.config.views == "both":
            agent.config = replace(agent.config, blend=_best_blend(run, network))
        # The agent is so small that a CPU has learnt before a GPU has been told to.
        _learn(run, agent.cpu(), records, log)
        agent.to(run.device)
    run.checkpoints.save(STAGE, {"agent": agent.state_dict(), "blend": agent.config.blend})


class Records(NamedTuple):
    """What was recorded of N images.

    Attributes:
        logits: (N, M, classes), what each path answers by itself. labels: (N,).
        pooled: of each path after which the agent decides, the mean (N, C) of its last maps; none
            if it sees the answer alone.
    """

    logits: Tensor
    labels: Tensor
    pooled: list[Tensor]


class Looks(NamedTuple):
    """What N images would come to.

    Of each path one tensor, whose second axis is the path before, of P: of the first path there is
    none, and P is 1.

    Attributes:
        losses: (N, P) of the answer. right: (N, P) bool, whether it is.
        seen: (N, P, F) of each path after which the agent decides, what it sees.
    """

    losses: list[Tensor]
    right: list[Tensor]
    seen: list[Tensor]

    def take(self, rows: Tensor) -> Looks:
        """Some of the images."""
        return Looks(*([of[rows] for of in path] for path in self))


@torch.no_grad()
def _record(run: Run, network: Network, batches: Iterable[Batch], log: StageLog) -> Records:
    parts = []
    for batch in batches:
        with run.autocast():
            parts.append(record(network, batch.images, batch.labels))
        log.advance(len(batch.labels))
    logits, labels, pooled = zip(*parts, strict=True)
    maps = [torch.cat(look).cpu() for look in zip(*pooled, strict=True)]
    return Records(torch.cat(logits).cpu(), torch.cat(labels).cpu(), maps)


def _best_blend(run: Run, network: Network) -> float:
    """What is best of `BLENDS` on the held-out images."""
    looks = Policy(folded(network).to(run.device), run.held_out, run.preprocessing).alone()
    logits = torch.from_numpy(np.stack([look.logits for look in looks], axis=1))
    return best_blend(logits, torch.from_numpy(run.held_out.labels))


def best_blend(logits: Tensor, labels: Tensor) -> float:
    """That of `BLENDS` with which most answers are right, over all pairs of paths in their order.

    Args:
        logits: (N, M, classes), what each path answers by itself. labels: (N,).
    """

    def right(blend: float) -> int:
        pairs = combinations(logits.unbind(dim=1), 2)
        answers = (blended(after, before, blend) for before, after in pairs)
        return sum(int((answer.argmax(dim=1) == labels).sum()) for answer in answers)

    return max(BLENDS, key=right)


def record(network: Network, images: Tensor, labels: Tensor) -> Records:
    """Send images (n, 3, H, W) along each of the agent's paths."""
    agent = network.agent
    assert isinstance(agent, PathAgent)
    answers, pooled = zip(*(network.look(images, n) for n in range(len(agent.paths))), strict=True)
    maps = list(pooled[: len(agent.looks)]) if agent.config.sees == "maps" else []
    return Records(torch.stack(answers, dim=1).float(), labels, maps)


@torch.no_grad()
def looks_of(agent: PathAgent, records: Records) -> Looks:
    """What the answers are after each path, whatever path was before.

    A path before the one before is left out (unless that is the first, as it always is): of the
    answer it is a ninth or less.
    """
    blend, first = agent.config.blend, records.logits[:, 0]
    looks = Looks([], [], [])
    # The answers after each path, if at most the first was before.
    early = [first]
    for number in range(len(agent.paths)):
        own = records.logits[:, number]
        answers = [blended(own, before, blend) for before in early[:number]] or [first]
        early[number:] = answers[:1]
        after = torch.stack(answers, dim=1)
        labels = records.labels[:, None].expand(-1, len(answers))
        looks.losses.append(F.cross_entropy(after.mT, labels, reduction="none"))
        looks.right.append(after.argmax(dim=2) == labels)
        if number < len(agent.looks):
            pooled = records.pooled[number] if records.pooled else own[:, :0]
            looks.seen.append(torch.stack([agent.seen(a, pooled) for a in answers], dim=1))
    return looks


def _learn(run: Run, agent: PathAgent, records: Records, log: StageLog) -> None:
    settings, looks = run.config.agent, looks_of(agent, records)
    scales = [_scale(seen.flatten(0, 1)) for seen in looks.seen]
    scaled = zip(looks.seen, scales, strict=True)
    looks = looks._replace(seen=[(seen - mean) / std for seen, (mean, std) in scaled])
    count = len(looks.losses[0])
    size = min(settings.batch_size, count)
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
            error = RULES[settings.rule](agent, looks.take(rows), penalty)
            optimizer.zero_grad()
            error.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            schedule.step()
            errors.append(error.item())
        log.advance(0)
        log.write(error=sum(errors) / len(errors), **_policy(agent, looks, settings.rule))
    for look, (mean, std) in enumerate(scales):
        standardise(agent, look, mean, std)


def _scale(seen: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and deviation of features (N, F)."""
    deviation = seen.std(dim=0)
    # What never changed says nothing, and what it would say if it did, nobody has learnt.
    deviation[deviation < 1e-4] = torch.inf
    return seen.mean(dim=0), deviation


def _right(agent: PathAgent, looks: Looks, penalty: Tensor) -> Tensor:
    return q_error(agent, looks.seen, [right.float() for right in looks.right], penalty)


def _loss(agent: PathAgent, looks: Looks, penalty: Tensor) -> Tensor:
    return q_error(agent, looks.seen, [-losses for losses in looks.losses], penalty)


def q_error(agent: PathAgent, seen: list[Tensor], worth: list[Tensor], penalty: Tensor) -> Tensor:
    """Squared error of what the agent expects, against the returns under its own choices.

    Args:
        seen: see `Looks`. worth: of each path (n, P), of the answer after it. penalty: (n,).
    Returns: a scalar, the sum over the decisions of their mean squared errors.
    """
    error = torch.zeros(())
    # What follows each path until the agent stops.
    onward = [torch.zeros_like(answers) for answers in worth]
    for look in reversed(range(len(agent.looks))):
        told = penalty[:, None].expand_as(worth[look])
        gain = agent(look, seen[look], told)
        later = _after(look, worth) + _after(look, onward)
        returns = later[:, None] - worth[look][..., None]
        error = error + F.mse_loss(gain, returns)
        chosen = agent.values(look, gain.detach(), told).argmax(dim=-1, keepdim=True)
        onward[look] = agent.values(look, returns, told).gather(-1, chosen)[..., 0]
    return error


def _after(look: int, values: list[Tensor]) -> Tensor:
    """Of each path (n, P), what each later path has if it comes after `look`: (n, M - 1 - look)."""
    return torch.stack([of[:, look] for of in values[look + 1 :]], dim=1)


def _gumbel(agent: PathAgent, looks: Looks, penalty: Tensor) -> Tensor:
    # What each path costs if it is run, with all that follows; the first is paid by all alike.
    costs = list(looks.losses)
    for look in reversed(range(len(agent.looks))):
        told = penalty[:, None].expand_as(costs[look])
        values = agent.values(look, agent(look, looks.seen[look], told), told)
        later = _after(look, costs) + penalty[:, None] * agent.price[look + 1 :]
        later = later[:, None].expand(-1, told.shape[1], -1)
        options = torch.cat([costs[look][..., None], later], dim=-1)
        chosen = F.gumbel_softmax(values / TEMPERATURE, hard=True)
        costs[look] = (chosen * options).sum(dim=-1)
    return costs[0].mean()


def _supervised(agent: PathAgent, looks: Looks, penalty: Tensor) -> Tensor:
    error = torch.zeros(())
    # What an image is worth on each path if it then goes the best way.
    worth = [right.float() for right in looks.right]
    for look in reversed(range(len(agent.looks))):
        told = penalty[:, None].expand_as(worth[look])
        gained = _after(look, worth)[:, None] - worth[look][..., None]
        options = agent.values(look, gained, told)
        values = agent.values(look, agent(look, looks.seen[look], told), told)
        best = options.argmax(dim=-1)
        error = error + F.cross_entropy((values / TEMPERATURE).flatten(0, 1), best.flatten())
        worth[look] = worth[look] + options.max(dim=-1).values
    return error


RULES = {"right": _right, "loss": _loss, "gumbel": _gumbel, "supervised": _supervised}


@torch.no_grad()
def follow(agent: PathAgent, seen: list[Tensor], penalty: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Where the agent stops.

    Returns: the number (N,) of the path; of the one before, 0 if there was none; and what going
        there was charged (N,).
    """
    last = torch.zeros(len(penalty), dtype=torch.int64)
    before, charged = torch.zeros_like(last), torch.zeros_like(penalty)
    no_limit, rows = torch.full_like(last, torch.iinfo(last.dtype).max), torch.arange(len(last))
    for look, features in enumerate(seen):
        # Of those that are elsewhere some other state is looked at, and nothing follows from it.
        gain = agent(look, features[rows, before.clamp(max=features.shape[1] - 1)], penalty)
        chosen = agent.choose(look, gain, penalty, no_limit)
        moves = (last == look) & (chosen > look)
        before, last = torch.where(moves, last, before), torch.where(moves, chosen, last)
        charged += moves * agent.price[chosen]
    return last, before, charged


@torch.no_grad()
def _policy(agent: PathAgent, looks: Looks, rule: str) -> dict[str, float]:
    """Loss, compute and reward of the agent's choices at one penalty in the middle of their range.

    Records are of training images, which the backbone knows: real ones gain less.
    """
    penalty = torch.full((len(looks.losses[0]),), PENALTY_MIDPOINT)
    last, before, charged = follow(agent, looks.seen, penalty)

    def reached(values: list[Tensor]) -> Tensor:
        stopped = [(last == number).nonzero()[:, 0] for number in range(len(values))]
        ends = zip(values, stopped, strict=True)
        return torch.cat([of[rows, before[rows]] for of, rows in ends])

    by_right = rule in ("right", "supervised")
    worth = [r.float() for r in looks.right] if by_right else [-x for x in looks.losses]
    gained = reached(worth).mean() - worth[0].mean()
    compute = charged.mean().item()
    return {
        "loss": reached(looks.losses).mean().item(),
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
