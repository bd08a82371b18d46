"""Accuracy against compute in one picture: ours, what it is held against, what others published."""

from __future__ import annotations

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure

Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Published:
    """What others measured on CIFAR-10, as shares of MACs and accuracies; not run here.

    Attributes:
        pruned: where they got.
        full: where they started from, the full network, if that is known.
    """

    pruned: Points
    full: float | None = None


# By the backbone and its MACs in millions.
PUBLISHED: dict[tuple[str, int], dict[str, Published]] = {
    ("mcifarnet", 174): {
        "the paper, by others": Published([(1 / 3.56, 0.8493)], full=0.9207),
        "FBS": Published([(1 / 3.93, 0.8988)], full=0.9137),
        "continuous actions": Published([(1 / 3.92, 0.9133)], full=0.9207),
    },
    ("vgg16", 313): {
        "static": Published([(0.23, 0.9383), (0.19, 0.9286), (0.12, 0.9168)], full=0.9396),
        "FTWT": Published([(0.26, 0.9265)]),
    },
}
_BLUE, _GREY, _INK = "#1f6feb", "#6b7280", "#111827"
# Random paths are not drawn: all others would lie on top of each other, so far are they below.
_STYLES: dict[str, dict[str, Any]] = {
    "ours": {"color": _BLUE, "marker": "o", "linewidth": 2.6, "zorder": 5},
    "cascade": {"color": "#d9822b", "linewidth": 0.9, "linestyle": ":"},
    "cascade, calibrated": {"color": "#d9822b", "marker": "s"},
    "cascade of 3": {"color": "#b45309", "linewidth": 0.9, "linestyle": ":"},
    "cascade of 3, calibrated": {"color": "#b45309", "marker": "D"},
    "fixed": {"color": "#2e7d32", "marker": "^"},
    "uniform": {"color": _GREY, "marker": "v"},
    "shuffled": {"color": _BLUE, "marker": "o", "linestyle": ":", "alpha": 0.6},
}
# Points of accuracy below the lowest line that are still shown.
_MARGIN = 0.8


def picture(report: dict[str, Any]) -> bytes:
    """A report of `training.compare`, as PNG."""
    with style.context(["default", {"font.size": 9, "text.parse_math": False}]):
        figure = Figure(figsize=(7.5, 5.2), dpi=120, layout="constrained")
        axes = figure.subplots()
        drawn = _lines(axes, report) + _marks(axes, report)
        axes.set_ylim(bottom=min(y for _, y in drawn) - _MARGIN)
        axes.set_xlim(0, 104)
        _published(axes, _known(report))
        axes.set_xlabel("mean compute, % of the full network's MACs")
        axes.set_ylabel("accuracy on test images, %")
        name = report["ours"][0]["bundle"]
        axes.set_title(f"{name}: ours and its rivals at equal compute", loc="left", weight="bold")
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(loc="outside lower center", frameon=False, fontsize=8, ncols=4)
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _lines(axes: Axes, report: dict[str, Any]) -> Points:
    """Draw ours and its rivals on the same weights; returns all points, in percent."""
    drawn: Points = []
    for name, line in _STYLES.items():
        if name in report["rows"][0]["accuracy"]:
            points = _percent((row["fraction"], row["accuracy"][name]) for row in report["rows"])
            axes.plot(*zip(*points, strict=True), label=name, markersize=4, **line)
            drawn += points
    return drawn


def _marks(axes: Axes, report: dict[str, Any]) -> Points:
    """Draw networks of other weights; returns all points, in percent."""
    drawn = _percent([(1, report["full"])])
    axes.plot(*drawn[0], "D", color="black", label="full network")
    for other in report["others"]:
        # The last point is the plain network.
        points = _percent((p["fraction"], p["accuracy"]) for p in other["points"][:-1])
        if points:
            label = f"agent of the form {other['form']}"
            axes.plot(*zip(*points, strict=True), "+-", color="#8e44ad", label=label)
        drawn += points
    for number, method in enumerate(dict.fromkeys(n["method"] for n in report["static"])):
        points = _percent(
            (n["fraction"], n["accuracy"]) for n in report["static"] if n["method"] == method
        )
        label = f"static: {method}"
        axes.plot(*zip(*points, strict=True), "P<>*"[number % 4], color="#b91c1c", label=label)
        drawn += points
    return drawn


def _known(report: dict[str, Any]) -> dict[str, Published]:
    ours = report["ours"][0]
    if Path(ours["data"]).name != "cifar10":
        return {}
    return PUBLISHED.get((ours["backbone"], round(ours["full_macs"] / 1e6)), {})


def _published(axes: Axes, known: dict[str, Published]) -> None:
    """Draw published points with their names; of those below all others the names alone."""
    bottom, label = axes.get_ylim()[0], "published, from its own full network"
    for name, published in known.items():
        start = "" if published.full is None else f", from {published.full:.2%}"
        points = _percent(published.pruned)
        for x, y in points:
            if y < bottom:
                axes.text(x, bottom + 0.05, f"↓ {name}: {y:.2f}%{start}", fontsize=7, color=_INK)
            else:
                axes.plot(x, y, "x", color=_INK, label=label)
                label = ""
        x, y = points[-1]
        if y >= bottom:
            axes.annotate(
                f"{name}{start}", (x, y), (6, -9), textcoords="offset points", fontsize=7,
                color=_INK,
            )  # fmt: skip


def _percent(points: Iterable[tuple[float, float]]) -> Points:
    return [(100 * share, 100 * right) for share, right in points]
