"""Rate, budget in force and p95 over time; a fixed budget is grey, one that follows load blue."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.load.outcome import Floats


@dataclass(frozen=True)
class Track:
    """A run over time: (T,) each, and the budget in force when it was asked for, (B,) each."""

    seconds: Floats
    offered: Floats
    answered: Floats
    p95_ms: Floats
    asked_s: Floats
    budget: Floats


def draw(
    tracks: Mapping[str, Track], capacity: float, target_ms: float, title: str, path: Path
) -> None:
    """Write a PNG of the runs "fixed" and "auto", or of the one there is."""
    # Here, as pictures are not always wanted.
    from matplotlib.figure import Figure

    from training.pictures import DPI, FAINT, OTHER, OURS, WIDTH, WRONG

    colours = {"fixed": OTHER, "auto": OURS}
    figure = Figure(figsize=(WIDTH, 6.2), dpi=DPI, layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    rate, budget, latency = figure.subplots(3, 1, sharex=True, height_ratios=(1, 1, 1.2))
    first = next(iter(tracks.values()))
    rate.fill_between(first.seconds, first.offered, color=FAINT, linewidth=0, label="offered")
    rate.axhline(capacity, color="black", linewidth=0.8, linestyle=":", label="full capacity")
    for name, track in tracks.items():
        colour = colours[name]
        rate.plot(track.seconds, track.answered, color=colour, label=f"{name}, answered")
        budget.step(track.asked_s, track.budget, color=colour, where="post", label=name)
        latency.plot(track.seconds, track.p95_ms, color=colour, label=name)
    latency.axhline(target_ms, color=WRONG, linewidth=0.8, linestyle="--", label="target")
    latency.set_yscale("log")
    latency.yaxis.set_major_formatter("{x:g}")
    rate.set_ylabel("requests a second")
    budget.set_ylabel("budget in force")
    latency.set_ylabel("p95 of the answered, ms")
    latency.set_xlabel("seconds")
    budget.set_ylim(0, 1.05)
    rate.set_ylim(bottom=0)
    latency.set_xlim(0, float(np.max(first.seconds)) * 1.01)
    for axes in (rate, budget, latency):
        axes.grid(color=FAINT, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
        # Above its panel, where no line is.
        place = {"loc": "lower right", "bbox_to_anchor": (1, 0.98), "borderaxespad": 0}
        axes.legend(frameon=False, fontsize=7, ncols=4, **place)
    figure.savefig(path)
