"""Is looking at the image worth it? Ours beside every rival that we can make, at equal compute.

The rivals on the same weights are those of `training.rivals`; networks pruned once and for all come
from `python -m training static`; bundles of another kind, such as one with the paper's agent, are
measured at what they spend themselves. Several bundles of different seeds give mean and spread.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from models.bundle import WEIGHTS, Bundle, read_bundle
from models.card import Card
from models.compute import FloatArray
from training.curves import picture
from training.data import Images
from training.errors import ConfigError
from training.evaluation import (
    about,
    check_budgets,
    full_path,
    held_out_images,
    measure_budgets,
    network_of,
    test_images,
)
from training.files import check_out, write_atomic
from training.measure import along
from training.rivals import measure

# Standard errors about a mean that hold it with 95 %.
Z_95 = 1.96


def compare(
    bundles: Sequence[Path],
    source: str,
    budgets: Sequence[float],
    cache: Path,
    out: Path,
    seed: int,
    *,
    others: Sequence[Path] = (),
    static: Sequence[Path] = (),
) -> None:
    """Print the tables, and write them as JSON beside a picture.

    Args:
        bundles: ours, of one kind and different seeds.
        others: bundles of another kind.
        static: reports of static networks.

    Raises:
        TrainingError, BundleError: anything the user can mend, before any time is spent: the
            bundles are of different kinds, or one is there twice, or a report cannot be read or is
            of another network or other images.
    """
    ours = [read_bundle(path) for path in bundles]
    rivals = [read_bundle(path) for path in others]
    for one in rivals:
        if _network(one.card) != _network(ours[0].card):
            raise ConfigError(
                f"bundle {one.path} has another backbone or other classes than {ours[0].path}: "
                "their compute is no share of the same network"
            )
    if len({_kind(bundle.card) for bundle in ours}) > 1:
        raise ConfigError("the bundles to compare must differ in nothing but their seeds")
    # By their weights, or a bundle and its recalibrated copy would pass for two.
    if len({bundle.card.files[WEIGHTS] for bundle in ours}) < len(ours):
        raise ConfigError("a bundle is named twice, or has another's weights: name each once")
    for bundle in ours:
        check_budgets(bundle.card, budgets)
    check_out(out)
    # All that can be refused is loaded before the first is measured, which takes long.
    loaded = [
        (one, test_images(one.card, source, cache), held_out_images(one.card, source, cache))
        for one in ours
    ]
    loaded_rivals = [(one, test_images(one.card, source, cache)) for one in rivals]
    data, images = Path(source).name, len(loaded[0][1])
    networks = [_read_static(path, ours[0].card, data, images) for path in static]
    report: dict[str, Any] = {
        "seed": seed,
        "ours": [_ours(*one, source, budgets, seed) for one in loaded],
        "others": [_other(*one, source, budgets) for one in loaded_rivals],
        "static": networks,
    }
    report.update(_means(report["ours"]))
    print(tables(report))
    write_atomic(out / "compare.md", tables(report).encode())
    write_atomic(out / "compare.png", picture(report))
    write_atomic(out / "compare.json", (json.dumps(report, indent=1) + "\n").encode())
    print(json.dumps(report))


def _ours(
    bundle: Bundle,
    images: Images,
    held_out: Images,
    source: str,
    budgets: Sequence[float],
    seed: int,
) -> dict[str, Any]:
    network = network_of(bundle)
    rows = measure(bundle.card, network, images, held_out, budgets, seed)
    full = along(network, images, bundle.card.preprocessing, full_path(network))
    return {
        **about(bundle, source, images),
        "backbone": bundle.card.backbone.name,
        "full_macs": bundle.card.table().full,
        "trained_with_seed": bundle.card.seed,
        "full": full.accuracy,
        "rows": [asdict(row) for row in rows],
    }


def _other(bundle: Bundle, images: Images, source: str, budgets: Sequence[float]) -> dict[str, Any]:
    within = [budget for budget in budgets if budget >= bundle.card.min_fraction]
    points = measure_budgets(network_of(bundle), bundle.card, images, within)
    return {
        **about(bundle, source, images),
        "form": bundle.card.agent.form,
        "points": [asdict(point) for point in points],
    }


def _network(card: Card) -> tuple[object, ...]:
    """What a share of the compute is of, and which classes are told apart."""
    return card.backbone, card.labels


def _kind(card: Card) -> tuple[object, ...]:
    """What bundles of different seeds have in common: all but what was found on held-out images."""
    agent = {**asdict(card.agent), "paths": (), "blend": 0}
    return *_network(card), *agent.values()


def _read_static(path: Path, card: Card, data: str, images: int) -> dict[str, Any]:
    """What is shown of a static network, if it is of the card's and was asked the same images."""
    try:
        report = json.loads(path.read_text())
        told = {name: report[name] for name in ("method", "fraction", "accuracy", "seed")}
        full, labels = round(report["macs"] / report["fraction"]), report["labels"]
        asked = report["data"], report["images"], *_sizes(report["preprocessing"])
    except (OSError, ValueError, LookupError, TypeError, ZeroDivisionError) as error:
        raise ConfigError(f"static report {path} cannot be read: {error}") from error
    if (full, tuple(labels)) != (card.table().full, card.labels):
        raise ConfigError(
            f"static report {path} is of a network of {full} MACs and {len(labels)} classes, "
            f"{card.name} has {card.table().full} and {len(card.labels)}: give reports of the same "
            "network and data"
        )
    ours = data, images, *_sizes(asdict(card.preprocessing))
    if asked != ours:
        raise ConfigError(
            f"static report {path} is of {_told(*asked)}, but ours is asked {_told(*ours)}: give "
            "reports of the same images, prepared alike"
        )
    return told


def _sizes(preprocessing: dict[str, Any]) -> tuple[int, int]:
    """How large images are resized and cropped; statistics differ by the images held out."""
    return preprocessing["resize"], preprocessing["size"]


def _told(data: str, images: int, resize: int, size: int) -> str:
    return f"{images} test images of {data}, resized to {resize} pixels and cropped to {size}"


def _means(ours: list[dict[str, Any]]) -> dict[str, Any]:
    """Mean over the bundles of every number; of accuracies, and of ours less each, the spread."""
    rows = []
    for same in zip(*(bundle["rows"] for bundle in ours), strict=True):
        accuracies = {
            name: np.array([row["accuracy"][name] for row in same]) for name in same[0]["accuracy"]
        }
        rows.append(
            {
                "budget": same[0]["budget"],
                "fraction": float(np.mean([row["fraction"] for row in same])),
                "paths": float(np.mean([row["paths"] for row in same])),
                "accuracy": {name: float(np.mean(v)) for name, v in accuracies.items()},
                "spread": {name: _deviation(v) for name, v in accuracies.items()},
                "difference_spread": {
                    name: _deviation(accuracies["ours"] - v) for name, v in accuracies.items()
                },
                "error": {
                    name: float(np.mean([row["error"][name] for row in same]))
                    for name in accuracies
                },
            }
        )
    return {"rows": rows, "full": float(np.mean([bundle["full"] for bundle in ours]))}


def _deviation(values: FloatArray) -> float:
    """Standard deviation of what was drawn a few times, 0 of a single one."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def tables(report: dict[str, Any]) -> str:
    """The report as Markdown."""
    first, seeds = report["ours"][0], [bundle["trained_with_seed"] for bundle in report["ours"]]
    names = list(report["rows"][0]["accuracy"])
    lines = [
        f"{first['bundle']}, {first['images']} test images, seeds {seeds}, {first['date']}, "
        f"{first['machine']}; full network {report['full']:.2%}; accuracy at equal mean compute"
        + (", mean ± standard deviation over the seeds" if len(seeds) > 1 else ""),
        "",
        "| budget | mean compute | " + " | ".join(names) + " | distinct paths |",
        "|---" * (len(names) + 3) + "|",
    ]
    for row in report["rows"]:
        cells = [
            f"{row['accuracy'][name]:.2%}"
            + (f" ± {100 * row['spread'][name]:.2f}" if len(seeds) > 1 else "")
            for name in names
        ]
        numbers = [f"{row['budget']:g}", f"{row['fraction']:.3f}", *cells, f"{row['paths']:g}"]
        lines.append("| " + " | ".join(numbers) + " |")
    lines += [
        "",
        "Points by which ours is above each, and the 95 % interval of that, on the same images"
        + ("; in brackets the standard deviation over the seeds:" if len(seeds) > 1 else ":"),
        "",
        "| budget | " + " | ".join(names[1:]) + " |",
        "|---" * len(names) + "|",
    ]
    lines += [_differences(row, names[1:], len(seeds)) for row in report["rows"]]
    points = [
        (f"{other['bundle']} ({other['form']})", point["fraction"], point["accuracy"])
        for other in report["others"]
        for point in other["points"]
    ]
    points += [(f"static: {n['method']}", n["fraction"], n["accuracy"]) for n in report["static"]]
    if points:
        lines += ["", "| network | mean compute | accuracy |", "|---|---|---|"]
        lines += [f"| {name} | {share:.3f} | {right:.2%} |" for name, share, right in points]
    return "\n".join(lines) + "\n"


def _differences(row: dict[str, Any], rivals: Sequence[str], seeds: int) -> str:
    accuracy, error, spread = row["accuracy"], row["error"], row["difference_spread"]
    cells = [
        f"{100 * (accuracy['ours'] - accuracy[name]):+.2f} ± {100 * Z_95 * error[name]:.2f}"
        + (f" ({100 * spread[name]:.2f})" if seeds > 1 else "")
        for name in rivals
    ]
    return f"| {row['budget']:g} | {' | '.join(cells)} |"
