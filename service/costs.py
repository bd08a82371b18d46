"""What a batch takes at a budget on this machine, measured at start; `service.estimate` fits it.

The time of a path is not its share of the MACs: it depends on the machine, its load and the batch.
So the engine is timed itself, on rows whose caps make it spend a budget whatever the images show.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from models.card import Card
from models.compute import MacTable
from service.engines.base import PAID, Caps, Engine, Floats, forced, plans

BUDGETS = (0.1, 0.2, 0.35, 0.6, 1.0)
BATCHES = (1, 4, 16)
# What budgets are averaged over, where a batch is smaller.
LEAST_ROWS = 8
# All measurements of one model; one that has begun is finished.
LIMIT_S = 0.2
Cell = tuple[float, int]


@dataclass(frozen=True)
class Cost:
    """What one batch takes at a budget: milliseconds for all its images."""

    budget: float
    batch: int
    ms: float


def measure(
    engine: Engine,
    card: Card,
    *,
    limit_s: float = LIMIT_S,
    clock: Callable[[], float] = time.perf_counter,
) -> tuple[Cost, ...]:
    """Time an engine that is warm by budget and batch, again and again until the time is up.

    Single images at the lowest budget and at the full network come first, and always, then the
    cheapest; what a slow machine leaves unmeasured is estimated from them.

    Returns: one of every budget and batch, by rising budget and then batch.
    """
    budgets = [card.min_fraction, *(b for b in BUDGETS if b > card.min_fraction)]
    ends = [(budgets[0], BATCHES[0]), (budgets[-1], BATCHES[0])]
    cells = sorted(
        itertools.product(budgets, BATCHES),
        key=lambda cell: (cell not in ends, cell[0] * _rows(*cell)),
    )
    table, images = card.table(), _images(card)
    seen: dict[Cell, list[float]] = {}
    stop = clock() + limit_s
    # Cells in turn, so that what disturbs a moment disturbs all of them alike.
    for budget, batch in itertools.cycle(cells):
        if clock() >= stop and len(seen) >= len(ends):
            break
        ms = _timed(engine, images, table, budget, batch, clock)
        seen.setdefault((budget, batch), []).append(ms)
    # Other work can only add to a time, so the least is the nearest to the truth.
    known = {cell: min(times) for cell, times in seen.items()}
    _estimate_rest(known, budgets)
    return smoothed([Cost(*cell, ms) for cell, ms in sorted(known.items())])


def smoothed(costs: Sequence[Cost]) -> tuple[Cost, ...]:
    """Times that never fall with budget or batch.

    Args:
        costs: of every combination of their budgets and batches, by rising budget and then batch.
    """
    ms = np.array([cost.ms for cost in costs]).reshape(-1, len({cost.batch for cost in costs}))
    # Less never takes longer; where it seemed to, other work was in the way.
    for axis in (0, 1):
        ms = np.flip(np.minimum.accumulate(np.flip(ms, axis), axis), axis)
    return tuple(
        replace(cost, ms=least) for cost, least in zip(costs, ms.ravel().tolist(), strict=True)
    )


def _estimate_rest(known: dict[Cell, float], budgets: list[float]) -> None:
    """Add what was not measured.

    Single images lie between those that were; a larger batch gains on them what it does at the
    next lower budget.
    """
    single = {budget: ms for (budget, batch), ms in sorted(known.items()) if batch == BATCHES[0]}
    for budget in budgets:
        between = np.interp(budget, list(single), list(single.values()))
        known.setdefault((budget, BATCHES[0]), float(between))
    for fewer, batch in itertools.pairwise(BATCHES):
        gain = batch / fewer
        for budget in budgets:
            if (budget, batch) in known:
                gain = known[budget, batch] / known[budget, fewer]
            else:
                known[budget, batch] = known[budget, fewer] * gain


def _rows(budget: float, batch: int) -> int:
    """Rows that are timed, so that their mean meets the budget; at 1 all rows are alike."""
    return batch if budget == 1 else max(batch, LEAST_ROWS)


def rows_at(table: MacTable, budget: float, rows: int) -> tuple[Floats, Caps, float]:
    """Penalties and caps that make rows spend a budget on average, whatever their images show.

    Some rows stop after the first path and others run one more. Among all mixtures of paths with
    this mean it is the most even, whose shares fall exponentially with a path's MACs.

    Args:
        budget: mean share of the full MACs; what is out of reach becomes the nearest within it.
    Returns: penalty (rows,) float32, cap (rows,) float64, and the share of the full MACs that the
        rows really spend, which a few of them cannot meet exactly.
    """
    if budget == 1:
        return np.zeros(rows, np.float32), np.ones(rows), 1.0
    if not table.looks:
        cap = np.full(rows, max(budget, table.least / table.full))
        return np.full(rows, PAID, np.float32), cap, float(cap[0])
    choices = plans(table)
    costs = choices / table.full
    chosen = _nearest(costs, _quantiles(_even_shares(costs, budget), rows), budget)
    # In an order in which every part is a fair sample.
    macs = choices[np.random.default_rng(0).permutation(chosen)]
    return *forced(macs, table), float(macs.mean() / table.full)


def _even_shares(costs: npt.NDArray[np.float64], mean: float) -> npt.NDArray[np.float64]:
    """The shares (M,) of greatest entropy whose mean cost is given, found by bisection."""
    low, high = -200.0, 200.0
    for _ in range(60):
        slope = (low + high) / 2
        logs = slope * costs
        weights = np.exp(logs - logs.max())
        shares: npt.NDArray[np.float64] = weights / weights.sum()
        low, high = (slope, high) if shares @ costs < mean else (low, slope)
    return shares


def _quantiles(shares: npt.NDArray[np.float64], rows: int) -> npt.NDArray[np.int64]:
    """The choice of each row (rows,), where choices are taken by these shares."""
    chosen = np.searchsorted(np.cumsum(shares), (np.arange(rows) + 0.5) / rows)
    return np.minimum(chosen, len(shares) - 1)


def _nearest(
    costs: npt.NDArray[np.float64], chosen: npt.NDArray[np.int64], mean: float
) -> npt.NDArray[np.int64]:
    """Choices (rows,) of which one after another is changed while that brings the mean nearer."""
    chosen = chosen.copy()
    while True:
        excess = costs[chosen].sum() - mean * len(chosen)
        after = np.abs(excess + costs[None, :] - costs[chosen][:, None])
        row, choice = np.unravel_index(after.argmin(), after.shape)
        if after[row, choice] >= abs(excess) - 1e-12:
            return chosen
        chosen[row] = choice


def batches(rows: int, batch: int) -> Iterator[slice]:
    """Slices of at most `batch` rows each."""
    return (slice(start, start + batch) for start in range(0, rows, batch))


def _images(card: Card) -> Floats:
    """(N, 3, H, W) of noise, enough for the largest batch."""
    size, rows = card.preprocessing.size, max(*BATCHES, LEAST_ROWS)
    return np.random.default_rng(0).normal(size=(rows, 3, size, size)).astype(np.float32)


def _timed(
    engine: Engine,
    images: Floats,
    table: MacTable,
    budget: float,
    batch: int,
    clock: Callable[[], float],
) -> float:
    """Milliseconds that a batch takes, the mean of enough batches to meet the budget."""
    rows = _rows(budget, batch)
    penalty, cap, _ = rows_at(table, budget, rows)
    start = clock()
    for part in batches(rows, batch):
        engine.run(images[:rows][part], penalty[part], cap[part])
    return (clock() - start) * 1e3 * batch / rows
