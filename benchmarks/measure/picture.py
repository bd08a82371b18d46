"""The picture of how much of what is saved in MACs is saved in time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.measure.row import Row


def draw(rows: Sequence[Row], path: Path) -> None:
    """Saving in time over saving in MACs, a panel for each network, with the diagonal."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    networks = list(dict.fromkeys(row.network for row in rows))
    figure, axes = plt.subplots(
        1, len(networks), figsize=(3.4 * len(networks), 3.6), squeeze=False, layout="constrained"
    )
    for axis, network in zip(axes[0], networks, strict=True):
        axis.plot([0.9, 16], [0.9, 16], color="0.6", linewidth=1)
        own = [row for row in rows if row.network == network]
        for key in dict.fromkeys((row.engine, row.threads, row.batch) for row in own):
            line = [row for row in own if (row.engine, row.threads, row.batch) == key]
            saving = np.array([row.time_saving.median for row in line])
            bars = np.array([(row.time_saving.low, row.time_saving.high) for row in line]).T
            label = f"{key[0]} on {key[1]} core{'s' * (key[1] > 1)}, batch {key[2]}"
            axis.errorbar([row.mac_saving for row in line], saving, np.abs(bars - saving),
                          marker="o", markersize=3, linewidth=1, label=label)  # fmt: skip
        axis.set(xscale="log", yscale="log", title=network, xlabel="× fewer MACs")
        ticks = [1, 2, 3, 4, 5, 10]
        for side in (axis.xaxis, axis.yaxis):
            side.set_ticks(ticks, [str(tick) for tick in ticks])
            side.set_ticks([], minor=True)
        axis.legend(frameon=False, fontsize=7)
    axes[0][0].set_ylabel("× less time than the fastest whole network")
    figure.savefig(path, dpi=110)
    plt.close(figure)
