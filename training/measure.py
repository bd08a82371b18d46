"""What a network does with a set of images: by policy, or along given paths."""

from __future__ import annotations

import math
import platform
import subprocess
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.agent import PathAgent
from models.compute import FloatArray, IntArray, path_macs
from models.network import Network, blended
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
        routes: (N, M) bool, along which of the agent's paths each was run, if that is how it goes.
    """

    widths: IntArray
    right: npt.NDArray[np.bool_]
    fraction: FloatArray
    logits: Logits = field(default_factory=lambda: np.empty((0, 0), np.float32), repr=False)
    routes: npt.NDArray[np.bool_] | None = field(default=None, repr=False)

    @property
    def accuracy(self) -> float:
        return float(self.right.mean())

    @property
    def mean_fraction(self) -> float:
        return float(self.fraction.mean())

    @property
    def log_probabilities(self) -> FloatArray:
        """(N, classes) float64, by which sure images differ that float32 takes for equal."""
        return self.at_temperature(1.0)

    def at_temperature(self, temperature: float) -> FloatArray:
        """(N, classes) float64, logarithms of the probabilities at a temperature."""
        logits = self.logits.astype(np.float64) / temperature
        logits -= logits.max(axis=1, keepdims=True)
        logs: FloatArray = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return logs


def machine(device: torch.device) -> str:
    """What it was measured on, for reports."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{platform.machine()}, {torch.get_num_threads()} threads"


def commit() -> str:
    """Of the code that runs, and whether it was changed since."""
    here = Path(__file__).parent
    command = ["git", "-C", str(here), "describe", "--always", "--dirty", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


@torch.no_grad()
def by_policy(
    network: Network, images: Images, preprocessing: Preprocessing, penalty: float
) -> Outcome:
    """Let the agent choose each image's path at one penalty, without a cap."""
    widths, macs, answers = [], [], []
    for batch in in_order(images, preprocessing, BATCH, network.device):
        penalties = batch.images.new_full((len(batch.images),), penalty)
        caps = penalties.double().fill_(math.inf)
        logits, trace = network.by_policy(batch.images, penalties, caps)
        widths.append(trace.widths.cpu().numpy())
        macs.append(trace.macs.cpu().numpy())
        answers.append(logits.cpu())
    return _outcome(network, images, np.concatenate(widths), np.concatenate(macs), answers)


class Policy:
    """What the agent does with a set of images, at one penalty after the other.

    An agent that goes along whole paths sees the same of an image at every penalty: each path is
    run once, on all images, when it is first asked for.

    Attributes:
        images: that it is asked about.
    """

    def __init__(self, network: Network, images: Images, preprocessing: Preprocessing) -> None:
        self.images = images
        self._network, self._preprocessing = network, preprocessing
        self._looks: dict[int, tuple[Tensor, Tensor]] = {}

    @torch.no_grad()
    def __call__(self, penalty: float) -> Outcome:
        """Let it choose each image's path."""
        network, images = self._network, self.images
        if not isinstance(network.agent, PathAgent):
            return by_policy(network, images, self._preprocessing, penalty)
        penalties = torch.full((len(images),), penalty, device=network.device)
        caps = penalties.double().fill_(math.inf)
        logits, trace = network.by_looks(self._look, penalties, caps)
        assert trace.routes is not None
        widths, macs = trace.widths.cpu().numpy(), trace.macs.cpu().numpy()
        found = _outcome(network, images, widths, macs, [logits.cpu()])
        return replace(found, routes=trace.routes.cpu().numpy())

    @torch.no_grad()
    def alone(self) -> list[Outcome]:
        """What each of a `PathAgent`'s paths answers by itself, of the view that it looks at."""
        network, agent = self._network, self._network.agent
        if not isinstance(agent, PathAgent):
            return []
        everyone = torch.arange(len(self.images), device=network.device)
        paths, n = agent.paths.cpu().numpy(), len(everyone)
        costs = path_macs(paths, network.table, agent=False)
        found = []
        for number, path in enumerate(paths):
            answers, _ = self._look(number, everyone)
            widths, macs = np.broadcast_to(path, (n, len(path))), np.full(n, costs[number])
            found.append(_outcome(network, self.images, widths, macs, [answers.cpu()]))
        return found

    @torch.no_grad()
    def by_routes(self, routes: npt.NDArray[np.bool_]) -> Outcome:
        """Send each image along those of the agent's paths that its row of (N, M) names.

        The first path must be among them; nothing is counted for deciding.
        """
        network, agent = self._network, self._network.agent
        assert isinstance(agent, PathAgent)
        paths = agent.paths.cpu().numpy()
        costs = path_macs(paths, network.table, agent=False)
        logits = torch.zeros(len(routes), network.backbone.classes, device=network.device)
        for number in range(len(paths)):
            here = torch.from_numpy(routes[:, number]).nonzero()[:, 0].to(network.device)
            answers, _ = self._look(number, here)
            before = logits[here] if number else None
            logits[here] = blended(answers, before, agent.config.blend)
        last = len(paths) - 1 - routes[:, ::-1].argmax(axis=1)
        found = _outcome(network, self.images, paths[last], routes @ costs, [logits.cpu()])
        return replace(found, routes=routes)

    def _look(self, number: int, rows: Tensor) -> tuple[Tensor, Tensor]:
        if number not in self._looks:
            network = self._network
            batches = in_order(self.images, self._preprocessing, BATCH, network.device)
            parts = [network.look(batch.images, number) for batch in batches]
            answers, means = zip(*parts, strict=True)
            self._looks[number] = torch.cat(answers), torch.cat(means)
        logits, pooled = self._looks[number]
        return logits[rows], pooled[rows]


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
