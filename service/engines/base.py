"""What the service asks of an engine; routes and batcher know nothing else of it."""

from __future__ import annotations

import hashlib
import inspect
from dataclasses import dataclass
from types import ModuleType
from typing import Protocol

import numpy as np
import numpy.typing as npt

from models.compute import MacTable

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
Caps = npt.NDArray[np.float64]

# Paid to compute: what holds a row back is its cap alone.
PAID = -1e3
DIGEST_DIGITS = 24


@dataclass(frozen=True)
class Result:
    """Answers for N images, same order as asked.

    Attributes:
        logits: (N, C) float32.
        widths: (N, L) int64, groups computed per layer along the path that gave the answer.
        macs: (N,) int64, multiply-accumulates of all that was computed, the agent included.
    """

    logits: Floats
    widths: Integers
    macs: Integers


class Engine(Protocol):
    """Runs one bundle on one kind of hardware."""

    name: str

    def run(self, images: Floats, penalty: Floats, cap: Caps) -> Result:
        """Classify images, each by its own penalty and cap. Called by one thread at a time.

        Args:
            images: (N, 3, H, W) float32, preprocessed; their memory is the caller's again after.
            penalty: (N,) float32, price of compute; below 0 compute is spent even where it is not
                expected to help. A row that `is_plain` runs the plain network: the agent is not
                consulted, its MACs are the full network's.
            cap: (N,) float64, share of the full MACs that a row never exceeds, infinite for none;
                not below the bundle's `min_cap`.
        """
        ...


def is_plain(penalty: Floats, cap: Caps) -> npt.NDArray[np.bool_]:
    """Which rows (N,) run the plain network: those of penalty 0 and a cap of 1 or more."""
    plain: npt.NDArray[np.bool_] = (penalty == 0) & (cap >= 1)
    return plain


def plans(table: MacTable) -> Integers:
    """MACs (M,) of all that rows can be made to run: the first path, alone or before another one.

    An agent that decides layer by layer can be made to run all layers whole.
    """
    if not table.looks:
        return np.array([table.full + table.agent[:, -1].sum()])
    first, *later = table.looks
    return np.array([first, *(first + macs for macs in later)])


def forced(macs: Integers, table: MacTable) -> tuple[Floats, Caps]:
    """Penalties and caps (N,) of rows that spend these MACs of `plans`, whatever images show."""
    # A row that is paid goes on to the dearest path that its cap allows. Half a MAC more, so that
    # rounding cannot forbid what is meant.
    return np.full(len(macs), PAID, np.float32), (macs + 0.5) / table.full


def every_way(table: MacTable) -> tuple[Floats, Caps]:
    """Penalties and caps of rows that run the plain network, and then each of `plans`."""
    penalty, cap = forced(plans(table), table)
    return np.insert(penalty, 0, 0), np.insert(cap, 0, 1)


def code_digest(made_for: str, *modules: ModuleType) -> str:
    """Names what is kept on disk, by what it was made for and the source of what made it."""
    digest = hashlib.sha256(made_for.encode())
    for module in modules:
        digest.update(inspect.getsource(module).encode())
    return digest.hexdigest()[:DIGEST_DIGITS]
