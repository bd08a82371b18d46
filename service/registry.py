"""The bundles that are served, each with its engine and its queue."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from models.bundle import CARD, Bundle, BundleError, Card, read_bundle
from models.compute import MacTable
from service.batcher import Batcher
from service.budget import Budget
from service.correction import Correction
from service.costs import CostTable
from service.engines.base import Engine
from service.errors import BudgetTooLow, CapTooLow
from service.estimate import Estimate
from service.metrics import Metrics
from service.planner import Planner
from service.settings import Settings


@dataclass(frozen=True)
class ServedModel:
    """A bundle and what runs it; `costs` is what it takes, if that was measured."""

    card: Card
    table: MacTable
    min_fraction: float
    min_cap: float
    engine: Engine
    planner: Planner
    batcher: Batcher
    costs: CostTable | None = None

    def check(self, budget: float | None, cap: float | None) -> None:
        """Check what a request asks for.

        Args:
            budget: in (0, 1], or None.
            cap: in (0, 1], or None.

        Raises:
            BudgetTooLow, CapTooLow: below what the bundle can reach.
        """
        if budget is not None:
            check_budget(self.card.name, budget, self.min_fraction)
        if cap is not None and cap < self.min_cap:
            raise CapTooLow(
                f"cap is {cap}: the cheapest path of {self.card.name} takes {self.min_cap}, "
                "ask for no less"
            )

    @property
    def budget_in_force(self) -> float:
        """What a request gets that names no budget."""
        return self.planner.in_force(idle=not self.batcher.depth)


def check_budget(model: str, budget: float, min_fraction: float, name: str = "budget") -> None:
    """Refuse a budget that a model cannot reach.

    Raises:
        BudgetTooLow: the budget is below `min_fraction`.
    """
    if budget < min_fraction:
        raise BudgetTooLow(
            f"{name} is {budget}: {model} can reach no less than {min_fraction}, "
            "ask for at least that"
        )


def serve_bundle(
    bundle: Bundle,
    engine: Engine,
    settings: Settings,
    metrics: Metrics,
    budget: Budget,
    costs: CostTable | None = None,
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
        on_batch=metrics.observe_batch,
    )
    table, least, min_cap = card.table(), card.min_fraction, card.min_cap
    return ServedModel(card, table, least, min_cap, engine, planner, batcher, costs)


def read_bundles(directory: Path) -> dict[str, Bundle]:
    """Read and verify every bundle of a directory, by name.

    Raises:
        BundleError: there is none, one is not whole, or two have the same name.
    """
    bundles: dict[str, Bundle] = {}
    for path in sorted(card.parent for card in directory.glob(f"[!.]*/{CARD}")):
        bundle = read_bundle(path)
        name = bundle.card.name
        if name in bundles:
            raise BundleError(f"bundles {bundles[name].path} and {path} are both named {name}")
        bundles[name] = bundle
    if not bundles:
        raise BundleError(f"{directory} holds no bundle: set RNP_BUNDLES to a directory with one")
    return bundles
