"""Search for the paths among which an agent chooses: the best fixed ones, from whole to narrowest.

Starting from the full network, the layer is narrowed by a group whose narrowing raises the loss on
held-out images least for the compute that it saves, until all are narrowest. (Yu and Huang,
AutoSlim, 2019, slim a trained supernet in the same greedy way.) What comes by is a chain of paths
from dear to cheap, of which some are kept, in equal steps of the logarithm of compute.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

from models.bundle import Bundle
from models.compute import mac_table, path_macs
from models.config import AgentConfig, BackboneConfig
from models.network import Network
from models.preprocess import Preprocessing
from models.weights import folded
from training.batches import Batch, in_order
from training.config import Agent
from training.data import Images, stratified
from training.errors import ConfigError
from training.run import Run
from training.supernet import tie

STAGE = "paths"
Path = tuple[int, ...]


def find(run: Run, network: Network) -> AgentConfig:
    """Run the stage, or take what it had found: an agent with its paths."""
    settings = run.config.agent
    if start := kept(run):
        return _as_set(start.card.agent, settings)
    checkpoint = run.checkpoints.load(STAGE)
    if checkpoint is None:
        labels = run.held_out.labels
        # Folders list their images class by class: the first ones would be of the first classes.
        drawn = stratified(labels, run.config.paths.images, run.config.seed)
        images = run.held_out.subset(drawn)
        chain = narrowing(folded(network).to(run.device), images, run.preprocessing, run.autocast())
        state = {"chain": [list(path) for path in chain]}
        run.checkpoints.save(STAGE, state)
    else:
        chain = [tuple(path) for path in checkpoint.state["chain"]]
    return choose(run.backbone, chain, run.config.paths.count, ends(run.backbone, settings))


def kept(run: Run) -> Bundle | None:
    """The bundle that a run starts from, if its paths are kept.

    Only its own paths work well in a bundle, and nothing changes that but the supernet's stage.
    """
    start = run.start
    return start if start and start.card.agent.paths and not run.config.supernet.epochs else None


def ends(backbone: BackboneConfig, settings: Agent) -> AgentConfig:
    """The agent of the narrowest path and the whole one, which every other holds as well.

    Raises:
        ConfigError: the narrowest and the decision after it are no cheaper than the full network.
    """
    paths = tuple((width,) * backbone.n_layers for width in (1, backbone.groups))
    agent = _as_set(AgentConfig("paths", paths=paths), settings)
    glance, full = mac_table(backbone, agent).looks
    if glance >= full:
        raise ConfigError(
            "the narrowest path and the decision after it are no cheaper than the full network: "
            f"setting agent.hidden is {agent.hidden}, make it less"
        )
    return agent


def _as_set(agent: AgentConfig, settings: Agent) -> AgentConfig:
    return replace(
        agent,
        hidden=settings.hidden,
        looks=settings.looks,
        sees=settings.sees,
        views=settings.views,
        blend=settings.blend or 0.0,
    )


def narrowing(
    network: Network, images: Images, preprocessing: Preprocessing, autocast: torch.autocast
) -> list[Path]:
    """Paths from the full network to its narrowest, each by a group narrower than the one before.

    Args:
        network: folded.
        images: held-out images on which losses are compared.
    """
    backbone, table = network.backbone, network.table
    batches = list(in_order(images, preprocessing, 500, network.device))

    def macs(path: Path) -> int:
        return int(path_macs(np.array([path]), table, agent=False)[0])

    chain: list[Path] = [(backbone.groups,) * backbone.n_layers]
    steps = (backbone.groups - 1) * sum(not backbone.tied(i) for i in range(backbone.n_layers))
    for _ in tqdm(range(steps), desc="paths", unit="path", disable=None):
        now = chain[-1]
        before = loss(network, batches, now, autocast)
        narrower = [narrowed(backbone, now, i) for i in range(backbone.n_layers)]
        candidates = [path for path in narrower if path is not None]
        rises = [loss(network, batches, path, autocast) - before for path in candidates]
        saved = [macs(now) - macs(path) for path in candidates]
        chain.append(candidates[int(np.argmin(np.array(rises) / np.array(saved)))])
    return chain


def narrowed(backbone: BackboneConfig, path: Path, layer: int) -> Path | None:
    """The path with a layer, and those tied to it, a group narrower; None if that cannot be."""
    if backbone.tied(layer) or path[layer] == 1:
        return None
    widths = torch.tensor([path])
    widths[0, layer] -= 1
    return tuple(tie(widths, backbone)[0].tolist())


@torch.no_grad()
def loss(network: Network, batches: Sequence[Batch], path: Path, autocast: torch.autocast) -> float:
    """Mean cross-entropy of images along one path."""
    total = 0.0
    for batch in batches:
        with autocast:
            logits = network(batch.images, path).float()
        total += F.cross_entropy(logits, batch.labels, reduction="sum").item()
    return total / sum(len(batch.labels) for batch in batches)


def choose(
    backbone: BackboneConfig, chain: Sequence[Path], count: int, agent: AgentConfig
) -> AgentConfig:
    """The agent with the narrowest path of a chain, the whole one, and at most `count` between.

    The dearest between is the last along which an image can be sent after the narrowest without
    spending more than the full network; the others divide what lies between in equal steps of the
    logarithm.

    Args:
        agent: see `ends`.
    """
    whole, narrowest = chain[0], chain[-1]
    glance, full = mac_table(backbone, agent).looks
    # Of the decision after the narrowest, each path between is one output more.
    room = full - glance - agent.hidden * count
    between = chain[-2:0:-1]
    trios = [replace(agent, paths=(narrowest, path, whole)) for path in between]
    macs = [mac_table(backbone, trio).looks[1] for trio in trios]
    costs = np.array([cost for cost in macs if cost <= room])
    if not len(costs):
        return agent
    wanted = np.geomspace(glance, costs[-1], count + 1)[1:]
    nearest = sorted({int(np.abs(np.log(costs / cost)).argmin()) for cost in wanted})
    return replace(agent, paths=(narrowest, *(between[n] for n in nearest), whole))
