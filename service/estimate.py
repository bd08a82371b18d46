"""How long the next batch will take: the table that was measured at start, and what was seen since.

    time = factor · (b + Σ a(share))

with a row's part `a` and a batch's part `b` from the table. The factor is learnt from every batch:
the machine does other work too, and more of it under load.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from service.costs import CostTable
from service.typical import Typical

Shares = npt.NDArray[np.float64]


class Estimate:
    """Seconds of batches on this machine, as far as they are known; safe to ask from any thread.

    Attributes:
        decode: seconds that an image's decoding takes.
        after: seconds from the end of a batch until its answers are on their way.
    """

    def __init__(self, costs: CostTable | None) -> None:
        """Start from a table; without one all is taken to be free until the first batch."""
        self._factor = Typical(None if costs is None else 1.0)
        self._budgets, self._row, self._batch = _lines(costs)
        self.decode, self.after = Typical(), Typical()

    def rows(self, shares: Shares, deviations: float = 0) -> Shares:
        """Seconds that rows add to their batch.

        Args:
            shares: any shape, of the full MACs.
            deviations: how many mean deviations to allow for, beyond the mean.
        """
        return self._factor.high(deviations) * self._plain_rows(shares)

    def batch(self, deviations: float = 0) -> float:
        """Seconds that a batch takes beyond its rows."""
        return self._factor.high(deviations) * self._batch

    def learn(self, shares: Shares, seconds: float) -> None:
        """See a batch whose rows took these shares (N,) of the full MACs."""
        expected = self._batch + float(self._plain_rows(shares).sum())
        self._factor.add(seconds / expected)

    def _plain_rows(self, shares: Shares) -> Shares:
        # Several looks can cost more than the full network, which is where the table ends.
        within = np.interp(shares, self._budgets, self._row)
        return within * np.maximum(shares, 1)


def _lines(costs: CostTable | None) -> tuple[Shares, Shares, float]:
    """The budgets (B,) of a table, seconds of a row at each of them (B,), and of a batch."""
    if costs is None:
        return np.array([0.0, 1.0]), np.array([1e-9, 1.0]), 0.0
    times = {(cost.budget, cost.batch): cost.ms / 1e3 for cost in costs.costs}
    budgets = sorted({budget for budget, _ in times})
    batches = sorted({batch for _, batch in times})
    one, most = batches[0], batches[-1]
    row = np.array(
        [
            (times[b, most] - times[b, one]) / (most - one) if most > one else times[b, one] / one
            for b in budgets
        ]
    )
    # A row is never free, whatever noise says.
    row = np.maximum(row, [times[b, most] / most / 4 for b in budgets])
    batch = np.mean(
        [max(times[b, one] - one * part, 0) for b, part in zip(budgets, row, strict=True)]
    )
    return np.array(budgets), row, float(batch)
