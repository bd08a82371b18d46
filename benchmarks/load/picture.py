"""What came and what became of it over time; a fixed budget is grey, one that follows load blue."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from benchmarks.load.outcome import Course


def draw(
    courses: Mapping[str, Course], capacity: float, target_ms: float, title: str, path: Path
) -> None:
    """Write a PNG of the runs "fixed" and "auto", or of the one there is."""
    # Here, as pictures are not always wanted.
    from matplotlib.figure import Figure

    from training.pictures import DPI, FAINT, OTHER, OURS, WIDTH, WRONG

    colours = {"fixed": OTHER, "auto": OURS}
    figure = Figure(figsize=(WIDTH, 7), dpi=DPI, layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    rate, within, latency, compute = figure.subplots(4, 1, sharex=True)
    first = next(iter(courses.values()))
    rate.fill_between(first.seconds, first.offered, color=FAINT, linewidth=0, label="offered")
    rate.axhline(capacity, color="black", linewidth=0.8, linestyle=":", label="full capacity")
    for name, course in courses.items():
        style = {"color": colours[name], "label": f"{name} budget"}
        rate.plot(course.seconds, course.answered, color=colours[name], label=f"{name}, answered")
        within.plot(course.seconds, 100 * course.within, **style)
        latency.plot(course.seconds, course.p95_ms, **style)
        compute.plot(course.seconds, 100 * course.fraction, **style)
    latency.axhline(target_ms, color=WRONG, linewidth=0.8, linestyle="--", label="target")
    latency.set_yscale("log")
    latency.yaxis.set_major_formatter("{x:g}")
    rate.set_ylabel("requests/s")
    within.set_ylabel(f"in {target_ms:g} ms,\n% of all requests")
    latency.set_ylabel("p95 of the\nanswered, ms")
    compute.set_ylabel("mean compute, %\nof the network's")
    compute.set_xlabel("seconds")
    for axes in (rate, within, compute):
        axes.set_ylim(bottom=0)
    compute.set_xlim(0, float(np.max(first.seconds)) * 1.01)
    for axes in (rate, within, latency, compute):
        axes.grid(color=FAINT, linewidth=0.6)
        axes.spines[["top", "right"]].set_visible(False)
    for axes in (rate, latency):
        # Above its panel, where no line is.
        place = {"loc": "lower right", "bbox_to_anchor": (1, 0.98), "borderaxespad": 0}
        axes.legend(frameon=False, fontsize=7, ncols=4, **place)
    figure.savefig(path)
