"""The picture of how much of what is saved in MACs is saved in time."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure.row import Row


def draw(rows: Sequence[Row], path: Path) -> None:
    """Saving in time over saving in MACs, a panel for each network, with the diagonal."""
    from matplotlib.figure import Figure

    networks = list(dict.fromkeys(row.network for row in rows))
    # A batch has its colour, and a number of threads its line, in all panels.
    batches, threads = (
        sorted({getattr(row, name) for row in rows}) for name in ("batch", "threads")
    )
    down = -(-len(networks) // 2)
    figure = Figure(figsize=(7.5, 0.4 + 3.2 * down), dpi=120, layout="constrained")
    panels = figure.subplots(down, 2, squeeze=False).ravel()
    for axis in panels[len(networks) :]:
        axis.set_axis_off()
    for axis, network in zip(panels, networks, strict=False):
        axis.plot([0.9, 16], [0.9, 16], color="0.6", linewidth=1, label="all of it")
        own = [row for row in rows if row.network == network]
        for engine, count, batch in dict.fromkeys((r.engine, r.threads, r.batch) for r in own):
            line = [r for r in own if (r.engine, r.threads, r.batch) == (engine, count, batch)]
            saving = np.array([row.time_saving.median for row in line])
            bars = np.array([(row.time_saving.low, row.time_saving.high) for row in line]).T
            axis.errorbar(
                [row.mac_saving for row in line], saving, np.abs(bars - saving),
                color=f"C{batches.index(batch)}", marker="o", markersize=3, linewidth=1,
                linestyle=("-", "--", ":", "-.")[threads.index(count) % 4],
                label=f"{engine}, {count} thread{'s' * (count > 1)}, batch {batch}",
            )  # fmt: skip
        axis.set(xscale="log", yscale="log", title=network, xlabel="times fewer MACs")
        axis.spines[["top", "right"]].set_visible(False)
        ticks = [1, 2, 3, 4, 5, 10]
        for side in (axis.xaxis, axis.yaxis):
            side.set_ticks(ticks, [str(tick) for tick in ticks])
            side.set_ticks([], minor=True)
    figure.supylabel("times less time than the fastest full network", fontsize=10)
    handles: dict[str, Any] = {}
    for axis in panels:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            handles.setdefault(label, handle)
    figure.legend(
        handles.values(), handles.keys(), loc="outside lower center", ncols=4, fontsize=8,
        frameon=False,
    )  # fmt: skip
    figure.savefig(path)
