"""What a network does with a set of images: by policy, or along given paths."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from models.compute import IntArray, path_macs
from models.network import Network
from models.preprocess import Preprocessing
from training.batches import in_order
from training.data import Images

BATCH = 500


@dataclass(frozen=True)
class Outcome:
    """What happened to N images.

    Attributes:
        widths: (N, L) int64, the path of each.
        right: (N,) bool, whether the label was found.
        fraction: (N,) float64, share of the full MACs, the agent's own included if it chose.
    """

    widths: IntArray
    right: npt.NDArray[np.bool_]
    fraction: npt.NDArray[np.float64]

    @property
    def accuracy(self) -> float:
        return float(self.right.mean())

    @property
    def mean_fraction(self) -> float:
        return float(self.fraction.mean())


@torch.no_grad()
def by_policy(
    network: Network,
    images: Images,
    preprocessing: Preprocessing,
    penalty: float,
    cap: float = 1.0,
) -> Outcome:
    """Let the agent choose each image's path at one penalty and cap."""
    widths, right = [], []
    for batch in in_order(images, preprocessing, BATCH):
        penalties = torch.full((len(batch.images),), penalty)
        caps = torch.full((len(batch.images),), cap, dtype=torch.float64)
        logits, trace = network.by_policy(batch.images, penalties, caps)
        widths.append(trace.widths.numpy())
        right.append((logits.argmax(dim=1) == batch.labels).numpy())
    return _outcome(network, np.concatenate(widths), np.concatenate(right), agent=True)


@torch.no_grad()
def along(
    network: Network, images: Images, preprocessing: Preprocessing, paths: IntArray
) -> Outcome:
    """Send each image along its row of paths (N, L); a single row (1, L) serves for all."""
    right = []
    for batch in in_order(images, preprocessing, BATCH):
        if len(paths) == 1:
            logits = network(batch.images, paths[0].tolist())
        else:
            logits = network.along(batch.images, torch.from_numpy(paths[batch.indices.numpy()]))
        right.append((logits.argmax(dim=1) == batch.labels).numpy())
    widths = np.broadcast_to(paths, (len(images), paths.shape[1]))
    return _outcome(network, widths, np.concatenate(right), agent=False)


def _outcome(
    network: Network, widths: IntArray, right: npt.NDArray[np.bool_], *, agent: bool
) -> Outcome:
    table = network.table
    return Outcome(widths, right, path_macs(widths, table, agent=agent) / table.full)
