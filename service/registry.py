"""The bundles that are served, each with its engine and its queue."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from models.bundle import CARD, Bundle, read_bundle
from models.card import BundleError, Card
from models.compute import MacTable, path_macs
from service.batch_buffer import BatchBuffer
from service.batcher import Batcher
from service.budget import Budget
from service.correction import Correction
from service.costs import Cost
from service.engines.base import Engine
from service.errors import BudgetTooLow, CapTooLow
from service.estimate import Estimate
from service.metrics import Metrics, ModelMetrics
from service.planner import Planner
from service.settings import Settings

# Paths whose cost is remembered: an agent that decides layer by layer takes many, others a few.
_KNOWN_PATHS = 4096


class RefCount:
    """Requests that hold a model; for the event loop, not for threads."""

    def __init__(self) -> None:
        self._count = 0
        self._none = asyncio.Event()
        self._none.set()

    def __enter__(self) -> None:
        self._count += 1
        self._none.clear()

    def __exit__(self, *error: object) -> None:
        self._count -= 1
        if not self._count:
            self._none.set()

    async def ended(self) -> None:
        """Wait until no request holds the model."""
        await self._none.wait()


@dataclass(frozen=True)
class ServedModel:
    """A bundle and what runs it; `costs` is what it takes, if that was measured.

    Attributes:
        digest: SHA-256 of the bundle, which tells apart two of the same name.
    """

    card: Card
    digest: str
    table: MacTable
    engine: Engine
    planner: Planner
    batcher: Batcher
    metrics: ModelMetrics
    costs: Sequence[Cost] = ()
    uses: RefCount = field(default_factory=RefCount)

    @cached_property
    def backbone_macs(self) -> Callable[[tuple[int, ...]], int]:
        """Tells the MACs of the backbone along a path, given by the widths of its layers."""
        # Not the model, which keeps this and would never be released.
        table = self.table

        @lru_cache(_KNOWN_PATHS)
        def macs(widths: tuple[int, ...]) -> int:
            return int(path_macs(np.array([widths]), table, agent=False)[0])

        return macs

    def check(self, budget: float | None, cap: float | None) -> None:
        """Check what a request asks for.

        Args:
            budget: in (0, 1], or None.
            cap: in (0, 1], or None.

        Raises:
            BudgetTooLow, CapTooLow: below what the bundle can reach.
        """
        if budget is not None:
            check_budget(self.card, budget)
        if cap is not None and cap < self.card.min_cap:
            raise CapTooLow(
                f"cap is {cap}: the cheapest path of {self.card.name} takes {self.card.min_cap}, "
                "ask for no less"
            )

    @property
    def budget_in_force(self) -> float:
        """What a request gets that names no budget."""
        return self.planner.in_force(idle=not self.batcher.depth)


def check_budget(card: Card, budget: float, name: str = "budget") -> None:
    """Refuse a budget that a model cannot reach.

    Raises:
        BudgetTooLow: the budget is below its `min_fraction`.
    """
    if budget < card.min_fraction:
        raise BudgetTooLow(
            f"{name} is {budget}: {card.name} can reach no less than {card.min_fraction}, "
            "ask for at least that"
        )


def serve_bundle(
    bundle: Bundle,
    engine: Engine,
    settings: Settings,
    metrics: Metrics,
    budget: Budget,
    costs: Sequence[Cost] = (),
) -> ServedModel:
    """Put a bundle's engine behind a queue; starts the queue's thread."""
    card = bundle.card
    planner = Planner(
        card,
        budget,
        Estimate(costs),
        Correction(on=settings.hold_budgets),
        max_batch=settings.max_batch,
    )
    batcher = Batcher(
        engine,
        planner,
        max_batch=settings.max_batch,
        max_wait_s=settings.max_wait_ms / 1e3,
        max_queue=settings.max_queue,
        temperature=card.temperature,
        stack=BatchBuffer(card.preprocessing),
        on_batch=metrics.observe_batch,
    )
    return ServedModel(
        card,
        bundle.digest,
        card.table(),
        engine,
        planner,
        batcher,
        ModelMetrics(
            metrics,
            card,
            lambda: planner.in_force(idle=not batcher.depth),
            planner.at_rest,
            lambda: planner.correction.error,
        ),
        costs,
    )


def read_bundles(directory: Path, children: Sequence[str] = ()) -> dict[str, Bundle]:
    """Read and verify every bundle of a directory, by name.

    Args:
        children: the bundles' own directories, if not all.

    Raises:
        BundleError: there is none, one is not whole, or two have the same name.
    """
    bundles: dict[str, Bundle] = {}
    found = sorted(card.parent for card in directory.glob(f"[!.]*/{CARD}"))
    for path in [_child(directory, child) for child in children] or found:
        bundle = read_bundle(path)
        name = bundle.card.name
        if name in bundles:
            raise BundleError(f"bundles {bundles[name].path} and {path} are both named {name}")
        bundles[name] = bundle
    if not bundles:
        raise BundleError(f"{directory} holds no bundle: set RNP_BUNDLES to a directory with one")
    return bundles


def bundle_names(directory: Path) -> dict[Path, str]:
    """The bundles of a directory by path, named as their cards say; nothing is verified.

    Those whose card cannot be read, or lies elsewhere by a link, are left out.
    """
    root, names = directory.resolve(), {}
    for card in sorted(directory.glob(f"[!.]*/{CARD}")):
        with contextlib.suppress(OSError, ValueError, TypeError, LookupError, RecursionError):
            name = json.loads(card.read_bytes())["name"]
            if isinstance(name, str) and card.resolve().is_relative_to(root):
                names[card.parent] = name
    return names


def find_bundle(directory: Path, name: str, child: str | None = None) -> Bundle:
    """Read and verify the bundle of this name.

    Args:
        directory: nothing outside it is read.
        child: the directory in it that holds the bundle; absent, the one whose card has the name.

    Raises:
        BundleError: there is none, or more than one, or it is not whole or has another name.
    """
    path = _path_of(directory, name) if child is None else _child(directory, child)
    bundle = read_bundle(path)
    if bundle.card.name != name:
        raise BundleError(f"bundle {path} is named {bundle.card.name!r}")
    return bundle


def _path_of(directory: Path, name: str) -> Path:
    names = bundle_names(directory)
    found = [path for path, card_name in names.items() if card_name == name]
    if len(found) > 1:
        raise BundleError(
            f"{' and '.join(path.name for path in found)} have this name: say which by its path"
        )
    if found:
        return found[0]
    if name in (path.name for path in directory.iterdir()):
        return _child(directory, name)
    known = ", ".join(sorted(set(names.values())))
    raise BundleError(f"{directory} has no bundle of this name: choose one of {known}")


def _child(directory: Path, child: str) -> Path:
    """A directory's own child: no way leads out of it, by `..` or by a link."""
    if not child or child.startswith(".") or Path(child).name != child or "\0" in child:
        raise BundleError(f"path is {child!r}: it must be the plain name of a directory")
    path = directory / child
    if not (path / CARD).resolve().is_relative_to(directory.resolve()):
        raise BundleError(f"path is {child!r}: it leads out of {directory}")
    return path
