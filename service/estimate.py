"""How long the next batch will take: what was measured at start, and what was seen since.

    time = factor · (b + Σ (r + s · share))

over a batch's rows: a part for the batch, a part for each row, and one for the compute that the row
takes. The three are fitted by least squares to the table of costs, and then to every batch since,
the old ones fading (recursive least squares with forgetting). The factor follows the last few
batches, as the machine does other work too.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from models.compute import FloatArray
from service.costs import Cost
from service.ewma import Ewma

# What is kept of the past with every batch, and what the table counts beside it, in batches.
_KEPT, _TABLE = 0.99, 2.0
# A batch that took longer than this many times what was expected was disturbed.
_DISTURBED = 4.0
_RIDGE = 1e-9 * np.eye(3)


class Estimate:
    """Seconds of batches on this machine, as far as they are known; safe to ask from any thread.

    Attributes:
        factor: times longer than the fitted parts say that batches take.
        decode: seconds that an image's decoding takes before it is queued.
        after: seconds from the end of a batch until its answers are on their way.
    """

    def __init__(self, costs: Sequence[Cost] = ()) -> None:
        """Start from what was measured; without it all is free until the first batch."""
        self._costs = costs
        self.forget()

    def forget(self) -> None:
        """Know no more than at the start."""
        self._first = self._parts = np.zeros(3)
        self._table, self._seen = np.zeros((3, 3)), np.zeros((3, 4))
        self.factor = Ewma(1.0)
        # How much slower the machine is than the table says.
        self._slower = Ewma(1.0)
        self.decode, self.after = Ewma(), Ewma()
        if self._costs:
            cells = np.array([[c.budget * c.batch, c.batch, 1.0, c.ms / 1e3] for c in self._costs])
            self._start(cells / cells[:, 3:])

    def rows(self, shares: FloatArray, deviations: float = 0) -> FloatArray:
        """Seconds that rows add to their batch.

        Args:
            shares: any shape, of the full MACs.
            deviations: how many mean deviations to allow for, beyond the mean.
        """
        compute, row, _ = self._parts
        seconds: FloatArray = self.factor.high(deviations) * (row + compute * shares)
        return seconds

    def batch(self, deviations: float = 0) -> float:
        """Seconds that a batch takes beyond its rows."""
        return float(self.factor.high(deviations) * self._parts[2])

    def learn(self, shares: FloatArray, seconds: float) -> None:
        """See a batch whose rows took these shares (N,) of the full MACs."""
        batch = np.array([shares.sum(), len(shares), 1.0, seconds])
        if not self._parts.any():
            self._start(np.array([batch / seconds]))
        expected = float(batch[:3] @ self._parts)
        self.factor.add(min(seconds / expected, _DISTURBED))
        batch[3] = min(seconds, _DISTURBED * expected)
        self._slower.add(batch[3] / float(batch[:3] @ self._first))
        # Relative errors count, or the largest batches would decide alone.
        batch /= max(seconds, expected)
        self._seen *= _KEPT
        self._seen += batch[:3, None] * batch
        # The table's times as they would be now, and its errors relative to those.
        table = self._table / self._slower.mean**2
        wanted = self._seen[:, 3] + table @ (self._first * self._slower.mean)
        self._parts = _least_squares(self._seen[:, :3] + table, wanted)

    def _start(self, rows: FloatArray) -> None:
        """Fit the parts to rows (N, 4) of what a batch consists of and its time, over its time."""
        self._table = _TABLE / len(rows) * rows[:, :3].T @ rows[:, :3]
        wanted = _TABLE / len(rows) * rows[:, :3].T @ rows[:, 3]
        self._first = self._parts = _least_squares(self._table, wanted)


def _least_squares(matrix: FloatArray, wanted: FloatArray) -> FloatArray:
    """What solves the normal equations (3, 3), without parts that would be negative."""
    # Batches that were all alike tell the parts apart only by this.
    regular = matrix + _RIDGE * matrix.trace()
    found: FloatArray = np.linalg.solve(regular, wanted)
    some = np.arange(3)
    while found.min(initial=0) < 0:
        some = np.delete(some, found.argmin())
        found = np.linalg.solve(regular[np.ix_(some, some)], wanted[some])
    parts = np.zeros(3)
    parts[some] = found
    return parts
