"""The pictures of a report, as PNG, 900 pixels wide: ours in blue, what it is held against in grey.

Shares and accuracies are drawn in percent.
"""

from __future__ import annotations

import io
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure

from training.data import Pixels
from training.findings import AtBudget, Corrupted, Decile, OfClass

OURS, OTHER, FAINT, WRONG = "#1f6feb", "#6e7781", "#d0d7de", "#cf222e"
WIDTH, DPI = 7.5, 120
MOST_CLASSES = 40
# Of images in a bin of confidence: how often few are right is chance.
LEAST_SHARE = 0.005
# Of images in a sheet, and the height of a row where an image is 1 wide.
COLUMNS, ROW = 4, 1.32
# What is logged of an agent that learns, and how it is called.
LEARNING = {"error": "error", "reward": "reward", "compute": "compute (share)", "loss": "loss"}

_STYLE = style.context(
    [
        "default",  # whatever the user's own matplotlibrc says
        {
            "font.size": 9,
            "text.parse_math": False,  # A class may be called $.
            "axes.titlesize": 9,
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": OTHER,
            "axes.axisbelow": True,
            "grid.color": FAINT,
            "grid.linewidth": 0.6,
            "legend.frameon": False,
        },
    ]
)


class Tile(NamedTuple):
    """A test image and what became of it.

    Attributes:
        pixels: (S, S, 3) uint8.
        fraction: compute it got.
    """

    pixels: Pixels
    label: str
    answer: str
    fraction: float


@_STYLE
def of_classes(rows: Sequence[OfClass], title: str) -> bytes:
    """Compute and accuracy of each class, the dearest on top; of many classes, both ends."""
    if len(rows) > MOST_CLASSES:
        rows = [*rows[: MOST_CLASSES // 2], *rows[-MOST_CLASSES // 2 :]]
    figure = _figure(1.3 + 0.27 * len(rows), title)
    left, right = figure.subplots(1, 2, sharey=True)
    places = np.arange(len(rows))
    spent = [100 * row.fraction for row in rows]
    left.barh(places, spent, 0.62, color=OURS)
    lows, highs = _percent(*zip(*(row.quartiles for row in rows), strict=True))
    left.hlines(places, lows, highs, color="black", linewidth=0.8)
    left.set_yticks(places, [row.label for row in rows])
    # Looks before the last may bring an image above the full network's compute.
    left.set_xlim(0, 1.02 * max(100, *highs))
    left.set_xlabel("compute, %: mean (bar) and middle half (line)")
    ours, full = _percent([row.accuracy for row in rows], [row.full for row in rows])
    right.hlines(places, ours, full, color=FAINT, linewidth=3)
    right.plot(full, places, "o", color=OTHER, fillstyle="none", markersize=8, label="full network")
    right.plot(ours, places, "o", color=OURS, markersize=5, label="ours")
    right.set_xlabel("accuracy, %")
    right.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=2)
    _grid(left, right, axis="x")
    return _png(figure)


@_STYLE
def of_images(cheapest: Sequence[Tile], dearest: Sequence[Tile], title: str) -> bytes:
    """Two sheets of test images side by side, wrong answers in red and crossed out."""
    rows = math.ceil(max(len(cheapest), len(dearest)) / COLUMNS)
    figure = _figure(0.7 + 1.24 * rows, title)
    left, right = figure.subplots(1, 2)
    _sheet(left, cheapest, "least compute")
    _sheet(right, dearest, "most compute")
    for axes in (left, right):
        axes.set(xlim=(0, COLUMNS), ylim=(rows * ROW, 0))
        axes.set_axis_off()
    return _png(figure)


def _sheet(axes: Axes, tiles: Sequence[Tile], name: str) -> None:
    """Draw images side by side, one unit wide, each under its caption."""
    # All in one: the layout of a figure with axes for each image takes seconds.
    wrong = sum(tile.label != tile.answer for tile in tiles)
    axes.set_title(f"{name}: {wrong} of {len(tiles)} wrong", color=OTHER)
    for place, tile in enumerate(tiles):
        row, column = divmod(place, COLUMNS)
        bottom = (row + 1) * ROW
        axes.imshow(tile.pixels, extent=(column + 0.04, column + 0.96, bottom, bottom - 0.92))
        axes.text(
            column + 0.5, bottom - 0.95, _caption(tile), fontsize=7, ha="center", va="bottom",
            color="black" if tile.label == tile.answer else WRONG,
        )  # fmt: skip


def _caption(tile: Tile) -> str:
    answer, share = _short(tile.answer, 14), f"{100 * tile.fraction:.0f} %"
    if tile.label == tile.answer:
        return f"{answer}\n{share}"
    return f"✗ {answer}\n{_short(tile.label, 9)}, {share}"


@_STYLE
def of_widths(budgets: Sequence[AtBudget], layers: Sequence[str], groups: int, title: str) -> bytes:
    """Mean width of each layer at each budget, as a heat map with the numbers in it."""
    widths = np.array([point.widths for point in budgets]).T
    figure = _figure(1.2 + 0.3 * len(layers), title)
    axes = figure.subplots()
    shades = LinearSegmentedColormap.from_list("ours", ["#ffffff", OURS])
    image = axes.imshow(widths, cmap=shades, vmin=0, vmax=groups, aspect="auto")
    for (row, column), width in np.ndenumerate(widths):
        colour = "white" if width > 0.9 * groups else "black"
        axes.text(column, row, f"{width:.1f}", ha="center", va="center", color=colour)
    axes.set_xticks(range(len(budgets)), [f"{point.budget:g}" for point in budgets])
    axes.set_yticks(range(len(layers)), layers)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    axes.set_xlabel("budget")
    figure.colorbar(image, label=f"groups computed, of {groups}", ticks=range(groups + 1))
    return _png(figure)


@_STYLE
def of_corruption(
    rows: Sequence[Corrupted], samples: dict[str, Pixels], names: dict[str, str], title: str
) -> bytes:
    """Compute and accuracy against strength, a column for each kind.

    Args:
        samples: for each kind (S, n · S, 3) uint8, one image at each strength, side by side; empty
            to show none.
        names: of the kinds.
    """
    heights = (0.46, 2, 2) if samples else (2, 2)
    figure = _figure(0.8 + sum(heights), title)
    axes = figure.subplots(
        len(heights), len(names), sharex=True, sharey="row", height_ratios=heights, squeeze=False
    )
    for column, (kind, name) in enumerate(names.items()):
        mine = [row for row in rows if row.kind == kind]
        strengths = [row.strength for row in mine]
        *sample, spent, right = axes[:, column]
        for strip in sample:
            strip.imshow(samples[kind], extent=(-0.5, len(mine) - 0.5, 0, 1), aspect="auto")
            strip.set_axis_off()
        axes[0, column].set_title(name)
        compute, ours, full = _percent(
            [row.fraction for row in mine], [row.accuracy for row in mine], [r.full for r in mine]
        )
        spent.plot(strengths, compute, "o-", color=OURS)
        right.plot(
            strengths, full, "o-", color=OTHER, fillstyle="none", markersize=8, label="full network"
        )
        right.plot(strengths, ours, "o-", color=OURS, markersize=5, label="ours")
        right.set_xlabel("strength")
        right.set_xticks(strengths)
        _grid(spent, right)
    axes[-2, 0].set_ylabel("compute, %")
    axes[-2, 0].set_ylim(bottom=0)
    axes[-1, 0].set_ylabel("accuracy, %")
    axes[-1, 0].legend(loc="lower left")
    return _png(figure)


@_STYLE
def of_reliability(budgets: Sequence[AtBudget], title: str) -> bytes:
    """Accuracy against confidence at each budget, the area of a point being its images."""
    columns = min(3, len(budgets))
    rows = math.ceil(len(budgets) / columns)
    figure = _figure(0.6 + 2.5 * rows, title)
    axes = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for one in axes.ravel()[len(budgets) :]:
        one.set_axis_off()
    for one, point in zip(axes.ravel(), budgets, strict=False):
        colour = OTHER if point.budget == 1 else OURS
        bins = [b for b in point.bins if b.share >= LEAST_SHARE]
        shares = [b.share for b in bins]
        confidence, right = _percent([b.confidence for b in bins], [b.accuracy for b in bins])
        one.plot([0, 100], [0, 100], color=FAINT, linewidth=1, zorder=0)
        one.vlines(confidence, confidence, right, color=colour, linewidth=0.8)
        one.scatter(confidence, right, 8 + 400 * np.array(shares), color=colour, linewidth=0)
        name = "full network" if point.budget == 1 else f"budget {point.budget:g}"
        one.set_title(f"{name}: calibration error {point.calibration_error:.3f}", fontsize=8)
        one.set_aspect("equal")
        _grid(one)
    figure.supxlabel("confidence, %", fontsize=9)
    figure.supylabel("accuracy, %", fontsize=9)
    return _png(figure)


@_STYLE
def of_difficulty(deciles: Sequence[Decile], title: str) -> bytes:
    """Compute of each tenth of the images, and how often the full network is wrong on it."""
    figure = _figure(3.4, title)
    axes = figure.subplots()
    places = np.arange(1, len(deciles) + 1)
    spent, wrong = _percent([d.fraction for d in deciles], [d.wrong for d in deciles])
    axes.bar(places - 0.2, spent, 0.4, color=OURS, label="compute, % of the full network's")
    axes.bar(places + 0.2, wrong, 0.4, color=OTHER, label="full network wrong, % of images")
    axes.set_xticks(places)
    axes.set_xlabel("tenth of the test images, by the full network's loss (easiest to hardest)")
    axes.axhline(100, color="black", linewidth=0.8, linestyle=":", label="the full network")
    axes.set_ylim(0, 1.02 * max(100, *spent))
    axes.legend(loc="upper left")
    _grid(axes)
    return _png(figure)


@_STYLE
def of_learning(records: Sequence[Mapping[str, float]], title: str) -> bytes:
    """An agent's error, and reward, compute and loss of its choices, while it learnt."""
    figure = _figure(2.4, title)
    passes = range(1, len(records) + 1)
    for axes, name in zip(figure.subplots(1, 4), LEARNING, strict=True):
        axes.plot(passes, [record[name] for record in records], color=OURS)
        axes.set_title(LEARNING[name])
        axes.set_xlabel("pass")
        _grid(axes)
    return _png(figure)


def _figure(height: float, title: str) -> Figure:
    figure = Figure(figsize=(WIDTH, height), dpi=DPI, layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=10, fontweight="bold")
    return figure


def _grid(*axes: Axes, axis: Any = "y") -> None:
    for one in axes:
        one.grid(axis=axis)


def _short(label: str, most: int) -> str:
    return label if len(label) <= most else f"{label[: most - 1].rstrip()}…"


def _percent(*values: Sequence[float]) -> list[npt.NDArray[np.float64]]:
    return [100 * np.array(each) for each in values]


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()
