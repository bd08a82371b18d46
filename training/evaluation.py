"""What each budget spends and keeps on test images: numbers, a table, a JSON file, a picture."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from models.bundle import Bundle, read_bundle
from models.card import Card, TestPoint
from models.compute import IntArray
from models.network import Network
from models.weights import load
from training.data import Images, load_test, load_train
from training.errors import ConfigError
from training.files import check_out, write_atomic
from training.measure import Outcome, Policy, along, by_policy, machine
from training.splits import check_set_aside

# What a point's name takes of the picture's width, in percent of the MACs.
_NAME_WIDTH = 14.0


def network_of(bundle: Bundle) -> Network:
    """The network of a bundle, for inference."""
    return load(bundle.card.backbone, bundle.card.agent, bundle.tensors)


def test_images(card: Card, source: str, cache: Path) -> Images:
    """The test images of a source, labelled as the bundle labels them.

    Raises:
        ConfigError: the bundle may have been trained on some of them.
        DataError: the source or an image cannot be used, or a class was not trained.
    """
    images = load_test(source, card.preprocessing, names=card.labels, cache=cache)
    check_set_aside(images, source, card.name, card.data)
    return images


def held_out_images(card: Card, source: str, cache: Path) -> Images:
    """The training images on which the bundle was calibrated, if the source is the same.

    Raises:
        ConfigError: the source has other classes or training images now, as far as the card knows.
        DataError: the source has no such training images.
    """
    data, count = card.data, int(card.data.get("held_out", 0))
    train, held_out = load_train(
        source, card.preprocessing, held_out=count, seed=card.seed, cache=cache
    )
    # Older cards have no digest.
    then = data.get("digest", train.digest), data.get("train"), card.labels
    if then != (train.digest, len(train), train.names):
        raise ConfigError(
            f"data {source!r} has other classes or training images than those that {card.name} was "
            "trained on: which of them it was trained without is not known"
        )
    return held_out


def at_budget(
    network: Network, card: Card, images: Images, budget: float, policy: Policy | None = None
) -> Outcome:
    """Classify images at a budget, as the service does: at 1 the plain network, no agent.

    Args:
        policy: of this network and these images, where several budgets are asked for.
    """
    if budget == 1:
        return along(network, images, card.preprocessing, full_path(network))
    if policy is None:
        return by_policy(network, images, card.preprocessing, card.penalty(budget))
    return policy(card.penalty(budget))


def check_budgets(card: Card, budgets: Sequence[float]) -> None:
    """Refuse budgets that the bundle cannot reach.

    Raises:
        ConfigError: with the first such budget and the lowest.
    """
    for budget in budgets:
        if not card.min_fraction <= budget <= 1:
            raise ConfigError(
                f"budget {budget} is out of reach: {card.name} spends {card.min_fraction} to 1"
            )


def measure_budgets(
    network: Network, card: Card, images: Images, budgets: Sequence[float]
) -> tuple[TestPoint, ...]:
    """Test points of the given budgets and of budget 1."""
    points, policy = [], Policy(network, images, card.preprocessing)
    for budget in tqdm(sorted({*budgets, 1.0}), desc="evaluation", unit="budget", disable=None):
        outcome = at_budget(network, card, images, budget, policy)
        spread = float(outcome.fraction.std())
        points.append(TestPoint(budget, outcome.mean_fraction, spread, outcome.accuracy))
    return tuple(points)


def evaluate(
    bundle_path: Path, source: str, budgets: Sequence[float], cache: Path, out: Path
) -> None:
    """Measure a bundle on a source's test images; print the table, write JSON and picture.

    Raises:
        TrainingError, BundleError: anything the user can mend, before any time is spent.
    """
    bundle = read_bundle(bundle_path)
    card = bundle.card
    check_budgets(card, budgets)
    check_out(out)
    images = test_images(card, source, cache)
    points = measure_budgets(network_of(bundle), card, images, budgets)
    print(table(card, points, len(images)))
    report = {
        **about(bundle, source, images),
        "points": [asdict(point) for point in points],
    }
    write_atomic(out / "evaluation.json", (json.dumps(report, indent=1) + "\n").encode())
    write_atomic(out / "curve.png", picture(card, points))
    print(json.dumps(report))


def about(bundle: Bundle, source: str, images: Images) -> dict[str, object]:
    """What was measured, on what, where and when."""
    return {
        "bundle": bundle.card.name,
        "digest": bundle.digest,
        "data": source,
        "images": len(images),
        "machine": machine(torch.device("cpu")),
        "torch": torch.__version__,
        "date": datetime.now(UTC).date().isoformat(),
    }


def table(card: Card, points: Sequence[TestPoint], images: int) -> str:
    """The points as a Markdown table."""
    full = card.table().full
    lines = [
        f"{card.name}, {images} test images, full network {full / 1e6:.1f} MMACs",
        "",
        "| budget | mean compute | spread among images | MMACs | accuracy |",
        "|---|---|---|---|---|",
    ]
    lines += [
        f"| {p.budget:g} | {p.fraction:.3f} | {p.spread:.3f} "
        f"| {p.fraction * full / 1e6:.1f} | {p.accuracy:.2%} |"
        for p in points
    ]
    return "\n".join(lines) + "\n"


def picture(card: Card, points: Sequence[TestPoint]) -> bytes:
    """Accuracy against compute, as PNG."""
    from matplotlib import patheffects, style
    from matplotlib.figure import Figure

    outline = [patheffects.withStroke(linewidth=3, foreground="white")]
    with style.context("default"):
        figure = Figure(figsize=(6.4, 4.2), layout="constrained")
        axes = figure.subplots()
        fractions = [100 * point.fraction for point in points]
        accuracies = [100 * point.accuracy for point in points]
        axes.plot(fractions, accuracies, "o-", color="#1f6feb", label="test images")
        named_at, following = math.inf, math.inf
        for point, x, y in reversed(list(zip(points, fractions, accuracies, strict=True))):
            if named_at - x >= _NAME_WIDTH:  # else names would lie on each other
                named_at = x
                # On the side of the curve where its next point is not.
                place = (6, -22 if y <= following else 6)
                axes.annotate(
                    f"budget {point.budget:g}\n{y:.1f} %", (x, y), place,
                    textcoords="offset points", fontsize=8, path_effects=outline, zorder=3,
                )  # fmt: skip
            following = y
        held_out = [(100 * p.fraction, 100 * p.accuracy) for p in card.calibration]
        axes.plot(
            *zip(*held_out, strict=True), ".", color="#9aa4b2", label="held-out training images"
        )
        axes.set_xlabel("mean compute, % of the full network's MACs")
        axes.set_ylabel("accuracy, %")
        axes.set_title(f"{card.name}: one set of weights, every budget", fontsize=10)
        axes.set_xlim(0, 118)
        axes.margins(y=0.15)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(loc="lower right", frameon=False)
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=120)
    return buffer.getvalue()


def full_path(network: Network) -> IntArray:
    """(1, L), every layer whole."""
    return np.full((1, network.backbone.n_layers), network.backbone.groups, np.int64)
