"""What a network does with a set of images: by policy, or along given paths."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.agent import PathAgent
from models.compute import FloatArray, IntArray, path_macs
from models.network import Network
from models.preprocess import Preprocessing
from training.batches import in_order
from training.data import Images

BATCH = 500

Logits = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Outcome:
    """What happened to N images.

    Attributes:
        widths: (N, L) int64, the path that gave each answer.
        right: (N,) bool, whether the label was found.
        fraction: (N,) float64, share of the full MACs, the agent's own included if it chose.
        logits: (N, classes) float32, what the network answered.
    """

    widths: IntArray
    right: npt.NDArray[np.bool_]
    fraction: FloatArray
    logits: Logits = field(default_factory=lambda: np.empty((0, 0), np.float32), repr=False)

    @property
    def accuracy(self) -> float:
        return float(self.right.mean())

    @property
    def mean_fraction(self) -> float:
        return float(self.fraction.mean())

    @property
    def log_probabilities(self) -> FloatArray:
        """(N, classes) float64, by which sure images differ that float32 takes for equal."""
        logits = self.logits.astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        logs: FloatArray = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return logs


@torch.no_grad()
def by_policy(
    network: Network,
    images: Images,
    preprocessing: Preprocessing,
    penalty: float,
    cap: float = math.inf,
) -> Outcome:
    """Let the agent choose each image's path at one penalty and cap."""
    widths, macs, answers = [], [], []
    for batch in in_order(images, preprocessing, BATCH, network.device):
        penalties = batch.images.new_full((len(batch.images),), penalty)
        caps = penalties.double().fill_(cap)
        logits, trace = network.by_policy(batch.images, penalties, caps)
        widths.append(trace.widths.cpu().numpy())
        macs.append(trace.macs.cpu().numpy())
        answers.append(logits.cpu())
    return _outcome(network, images, np.concatenate(widths), np.concatenate(macs), answers)


class Policy:
    """What the agent does with a set of images, at one penalty after the other.

    An agent that goes along whole paths sees the same of an image at every penalty: each path is
    run once, on all images, when it is first asked for.
    """

    def __init__(self, network: Network, images: Images, preprocessing: Preprocessing) -> None:
        self._network, self._images, self._preprocessing = network, images, preprocessing
        self._looks: dict[int, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def __call__(self, penalty: float, cap: float = math.inf) -> Outcome:
        """Let it choose each image's path."""
        network, images = self._network, self._images
        if not isinstance(network.agent, PathAgent):
            return by_policy(network, images, self._preprocessing, penalty, cap)
        penalties = torch.full((len(images),), penalty, device=network.device)
        caps = penalties.double().fill_(cap)
        logits, trace = network.by_looks(self._look, penalties, caps)
        widths, macs = trace.widths.cpu().numpy(), trace.macs.cpu().numpy()
        return _outcome(network, images, widths, macs, [logits.cpu()])

    def _look(self, number: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        if number not in self._looks:
            network = self._network
            assert isinstance(network.agent, PathAgent)
            path = network.agent.paths[number].tolist()
            batches = in_order(self._images, self._preprocessing, BATCH, network.device)
            parts = [network.look(batch.images, path) for batch in batches]
            answers, features = zip(*parts, strict=True)
            self._looks[number] = torch.cat(answers), torch.cat(features)
        logits, seen = self._looks[number]
        return logits[rows], seen[rows]


@torch.no_grad()
def along(
    network: Network, images: Images, preprocessing: Preprocessing, paths: IntArray
) -> Outcome:
    """Send each image along its row of paths (N, L); a single row (1, L) serves for all."""
    answers = []
    for batch in in_order(images, preprocessing, BATCH, network.device):
        if len(paths) == 1:
            logits = network(batch.images, paths[0].tolist())
        else:
            rows = torch.from_numpy(paths[batch.indices.numpy()])
            logits = network.along(batch.images, rows.to(network.device))
        answers.append(logits.cpu())
    widths = np.broadcast_to(paths, (len(images), paths.shape[1]))
    macs = path_macs(widths, network.table, agent=False)
    return _outcome(network, images, widths, macs, answers)


def _outcome(
    network: Network, images: Images, widths: IntArray, macs: IntArray, answers: list[Tensor]
) -> Outcome:
    logits: Logits = torch.cat(answers).float().numpy()
    right = logits.argmax(axis=1) == images.labels
    return Outcome(widths, right, macs / network.table.full, logits)
