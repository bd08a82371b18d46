"""The stage of an agent that decides layer by layer.

Record episodes with the agent of the time, learn from all of them, repeat.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor

from models.agent import LayerAgent
from models.compute import step_price
from models.network import Network
from models.weights import folded
from training.batches import generator
from training.qlearning import (
    Episodes,
    bellman_loss,
    draw_penalty,
    layer_agent,
    minibatches,
    record,
)
from training.run import LEARNING, RECORDING, Run
from training.runlog import StageLog
from training.supernet import set_learning_rate

STAGE = "agent"
# Share of the learning agent that its target network takes over at each step.
TAU = 0.01
RECORDING_BATCH = 500
# From here on a quarter of the episodes stay wholly random, so that no width is forgotten.
RANDOM_SHARE = 0.25


@dataclass
class Learner:
    """The learning agent, its target network, and what it learns from."""

    agent: LayerAgent
    target: LayerAgent
    optimizer: torch.optim.Optimizer
    prices: Tensor
    episodes: list[Episodes] = field(default_factory=list)

    @classmethod
    def of(cls, network: Network, learning_rate: float) -> Learner:
        """A learner of a network's agent, which it changes in place."""
        agent = layer_agent(network)
        target = copy.deepcopy(agent).requires_grad_(False)
        optimizer = torch.optim.Adam(agent.parameters(), lr=learning_rate)
        prices = torch.from_numpy(step_price(network.table, agent.config.form)).to(network.device)
        return cls(agent, target, optimizer, prices)

    def learn(self, episodes: Episodes, penalty: Tensor, learning_rate: float) -> float:
        """One step of Q-learning; returns the Bellman error."""
        set_learning_rate(self.optimizer, learning_rate)
        loss = bellman_loss(self.agent, self.target, episodes, penalty, self.prices)
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self.optimizer.step()
        with torch.no_grad():
            for old, new in zip(self.target.parameters(), self.agent.parameters(), strict=True):
                old.lerp_(new, TAU)
        return loss.item()

    def state(self) -> dict[str, object]:
        """What a checkpoint keeps, the episodes aside."""
        return {
            "agent": self.agent.state_dict(),
            "target": self.target.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }


def train(run: Run, network: Network) -> None:
    """Run the stage, or what is left of it, on a frozen backbone; the agent is changed in place.

    A step of the stage is one pass over the episodes; each recording is followed by `epochs`.
    """
    settings = run.config.agent
    learner = Learner.of(network, settings.learning_rate)
    done = _restore(run, learner)
    steps = settings.recordings * settings.epochs
    backbone = folded(network).to(run.device)
    backbone.agent = network.agent
    with run.log(STAGE, steps, done) as log:
        for step in range(done, steps):
            recording, epoch = divmod(step, settings.epochs)
            if epoch == 0:
                _record(run, backbone, learner, recording)
            _learn(run, learner, step, 1 - step / steps, log)
            run.checkpoints.save(STAGE, learner.state(), step=step + 1)
    for recording in range(settings.recordings):
        run.checkpoints.remove(_episodes(recording))


def _record(run: Run, backbone: Network, learner: Learner, recording: int) -> None:
    settings = run.config.agent
    random = generator(run.config.seed, RECORDING, recording)
    batches = run.batches(RECORDING_BATCH)
    # ε falls from 1 to its end over the recordings; the only one is the last.
    last = settings.recordings - 1
    epsilon = settings.epsilon ** (recording / last if last else 1)
    parts = []
    for batch in islice(batches.epoch(recording), math.ceil(settings.images / RECORDING_BATCH)):
        part = record(
            backbone,
            batch.images,
            batch.labels,
            _told(run, len(batch.images) * settings.ways, random),
            ways=settings.ways,
            random_share=max(epsilon, RANDOM_SHARE),
            epsilon=epsilon / 2,
            generator=random,
            autocast=run.autocast(),
        )
        parts.append(part)
    learner.episodes.append(Episodes.concatenate(parts))
    run.checkpoints.save(_episodes(recording), vars(learner.episodes[-1]))


def _learn(run: Run, learner: Learner, step: int, rate: float, log: StageLog) -> None:
    """One pass over all episodes."""
    settings = run.config.agent
    random = generator(run.config.seed, LEARNING, step)
    episodes = Episodes.concatenate(learner.episodes)
    size = min(settings.batch_size, len(episodes))
    errors = []
    for rows in minibatches(len(episodes), size, random):
        penalty = _penalty(run, size, random)
        errors.append(
            learner.learn(episodes[rows.to(run.device)], penalty, rate * settings.learning_rate)
        )
    log.advance(len(episodes))
    newest = learner.episodes[-1]
    log.write(
        bellman_error=sum(errors) / len(errors),
        loss=newest.loss.mean().item(),
        baseline=newest.baseline.mean().item(),
        mean_width=newest.widths.float().mean().item(),
    )


def _penalty(run: Run, episodes: int, random: torch.Generator) -> Tensor:
    settings = run.config.agent
    if settings.form == "paper":
        return torch.full((episodes,), settings.penalty, device=run.device)
    low, high = settings.penalties
    return draw_penalty(episodes, low, high, random).to(run.device)


def _told(run: Run, episodes: int, random: torch.Generator) -> Tensor:
    """What the agent is told while it records; the paper's is told nothing."""
    penalty = _penalty(run, episodes, random)
    return torch.zeros_like(penalty) if run.config.agent.form == "paper" else penalty


def _restore(run: Run, learner: Learner) -> int:
    settings, checkpoint = run.config.agent, run.checkpoints.load(STAGE)
    if checkpoint is None:
        return 0
    learner.agent.load_state_dict(checkpoint.state["agent"])
    learner.target.load_state_dict(checkpoint.state["target"])
    learner.optimizer.load_state_dict(checkpoint.state["optimizer"])
    if checkpoint.step < settings.recordings * settings.epochs:
        recorded = math.ceil(checkpoint.step / settings.epochs)
        kept = [run.checkpoints.load(_episodes(number)) for number in range(recorded)]
        episodes = [Episodes(**part.state) for part in kept if part is not None]
        learner.episodes = [part.to(run.device) for part in episodes]
    return checkpoint.step


def _episodes(recording: int) -> str:
    return f"{STAGE}-episodes-{recording}"
