"""What a network does with its freedom, for people: pictures, and a page that explains each."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from models.bundle import Bundle, read_bundle
from models.card import Card
from models.compute import FloatArray, IntArray
from training import pictures
from training.corruptions import SETTINGS, STRENGTHS, corrupt
from training.data import Images, Pixels
from training.errors import ConfigError
from training.evaluation import about, check_budgets, network_of, test_images
from training.files import check_out, write_atomic
from training.findings import Findings, find
from training.pathwise import STAGE
from training.pictures import Tile
from training.runlog import read_log

# Classes, images, corruption and difficulty are looked at where the budget is nearest to it.
FOCUS = 0.4
TILES = 24
LEARNING = "learning"
LEARNING_TITLE = (
    "The agent's passes over its records, and what it would choose at a middling penalty"
)
KINDS = {"noise": "Gaussian noise", "blur": "Gaussian blur", "jpeg": "JPEG"}


def report(
    bundle_path: Path,
    source: str,
    budgets: Sequence[float],
    cache: Path,
    out: Path,
    count: int,
    seed: int,
    log: Path | None = None,
) -> None:
    """Measure a bundle on a source's test images; write pictures, JSON, and a page with them.

    Args:
        count: of the test images that are looked at; 0 for all.
        seed: of all that is drawn by lot: these images, those shown, and the noise.
        log: of the run that trained it, whose agent's learning is drawn too.

    Raises:
        TrainingError: anything the user can mend, before any time is spent.
    """
    bundle = read_bundle(bundle_path)
    card = bundle.card
    check_budgets(card, budgets)
    focus = focus_of(budgets)
    if count < 0:
        raise ConfigError(f"--images is {count}: it must be at least 1, or 0 for all")
    check_out(out)
    learning = [] if log is None else learnt(log)
    every = test_images(card, source, cache)
    images = some(every, count, seed)
    findings = find(network_of(bundle), card, images, budgets, focus, seed)
    told = {**about(bundle, source, images), "of": len(every), "seed": seed}
    drawn = draw(card, images, findings)
    if learning:
        drawn[LEARNING] = pictures.of_learning(learning, LEARNING_TITLE)
    for name, content in drawn.items():
        write_atomic(out / f"{name}.png", content)
    numbers = {**told, **in_json(findings)}
    write_atomic(out / "report.json", (json.dumps(numbers, indent=1) + "\n").encode())
    write_atomic(out / "report.md", page(bundle, told, findings, learning=bool(learning)).encode())
    print(f"{_table(findings)}\n\n{out / 'report.md'} explains it\n")
    print(json.dumps(numbers))


def learnt(log: Path) -> list[dict[str, Any]]:
    """What a run's log says of each pass of its agent.

    Raises:
        ConfigError: the log cannot be read, or says nothing of an agent.
    """
    try:
        records = [record for record in read_log(log) if record["stage"] == STAGE]
    except (OSError, ValueError, LookupError) as error:
        raise ConfigError(f"--log {log} cannot be read: {error}") from error
    kept = [record for record in records if pictures.LEARNING.keys() <= record.keys()]
    if not kept:
        raise ConfigError(
            f"--log {log} says nothing of an agent of the form 'paths' that learns; of others "
            "nothing is drawn: leave it out"
        )
    return kept


def focus_of(budgets: Sequence[float]) -> float:
    """The budget at which everything but the budgets themselves is looked at.

    Raises:
        ConfigError: none is below 1, where the network chooses nothing.
    """
    below = [budget for budget in budgets if budget < 1]
    if not below:
        raise ConfigError("--budgets has none below 1: there the network chooses nothing")
    return min(below, key=lambda budget: abs(budget - FOCUS))


def some(images: Images, count: int, seed: int) -> Images:
    """The first `count` images of a seeded shuffle, in their own order; 0 for all."""
    if not 0 < count < len(images):
        return images
    return images.subset(np.sort(np.random.default_rng(seed).permutation(len(images))[:count]))


def draw(card: Card, images: Images, findings: Findings) -> dict[str, bytes]:
    """All pictures, by name."""
    at = f"at budget {findings.focus:g}"
    first, last = findings.classes[0], findings.classes[-1]
    rho = _rho(findings)
    example = images.take(findings.order[:1])
    layers = [layer.name for layer in card.backbone.layers]
    return {
        "images": pictures.of_images(
            tiles(images, findings, findings.order[:TILES]),
            tiles(images, findings, findings.order[::-1][:TILES]),
            f"The test images that cost least and most {at}",
        ),
        "difficulty": pictures.of_difficulty(
            findings.deciles, f"Compute by difficulty {at} (rank correlation {rho})"
        ),
        "classes": pictures.of_classes(
            findings.classes,
            f"{last.label} images get most compute, {first.label} images least, {at}",
        ),
        "widths": pictures.of_widths(
            findings.budgets,
            layers,
            card.backbone.groups,
            "Mean width of each layer at each budget",
        ),
        "corruption": pictures.of_corruption(
            findings.corrupted,
            {kind: samples(example, kind) for kind in KINDS},
            KINDS,
            f"Corrupted images: compute and accuracy at the penalty of budget {findings.focus:g}",
        ),
        "reliability": pictures.of_reliability(
            findings.budgets,
            "Accuracy by confidence: on the line, answers are right as often as they claim",
        ),
    }


def tiles(images: Images, findings: Findings, chosen: IntArray) -> list[Tile]:
    """What became of the chosen images."""
    ours = findings.ours
    return [
        Tile(
            pixels,
            images.names[images.labels[i]],
            images.names[ours.logits[i].argmax()],
            float(ours.fraction[i]),
        )
        for i, pixels in zip(chosen, images.take(chosen), strict=True)
    ]


def samples(image: Pixels, kind: str) -> Pixels:
    """An image (1, S, S, 3) as it is, and at each strength of corruption: (S, 6 · (S + 2), 3)."""
    changed = [corrupt(image, kind, strength, 0) for strength in STRENGTHS]
    rim = ((0, 0), (1, 1), (0, 0))
    return np.concatenate(
        [np.pad(one[0], rim, constant_values=255) for one in (image, *changed)], axis=1
    )


def in_json(findings: Findings) -> dict[str, object]:
    """The findings without what there is for each image, but those shown."""
    values = asdict(findings)
    order = values.pop("order")
    del values["ours"], values["full"]
    return {
        **values,
        "corruption_settings": SETTINGS,
        "cheapest": order[:TILES].tolist(),
        "dearest": order[::-1][:TILES].tolist(),
    }


def page(
    bundle: Bundle, told: Mapping[str, object], findings: Findings, *, learning: bool = False
) -> str:
    """The report as Markdown: a table, then each picture under a sentence about it."""
    title = f"# What {bundle.card.name} does with its freedom"
    return (
        "\n\n".join(
            [title, _what(told), _table(findings)]
            + [
                f"## {heading}\n\n{sentence}\n\n![{heading}]({name}.png)"
                for name, heading, sentence in (
                    *_sections(bundle.card, findings),
                    *([(LEARNING, "How the agent learnt", f"{LEARNING_TITLE}.")] * learning),
                )
            ]
        )
        + "\n"
    )


def _what(told: Mapping[str, object]) -> str:
    images, of = told["images"], told["of"]
    which = "all" if images == of else f"{images}, drawn with seed {told['seed']},"
    return (
        f"Measured on {which} of the {of} test images of `{told['data']}`, {told['date']}, "
        f"{told['machine']}, torch {told['torch']}; bundle `{str(told['digest'])[:12]}`. "
        "Compute is the share of the full network's multiply-accumulates, the agent's own included."
    )


def _table(findings: Findings) -> str:
    lines = [
        "| budget | mean compute | spread among images | accuracy | distinct paths "
        "| on the cheapest | calibration error | rank correlation with difficulty |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for p in findings.budgets:
        rho = "" if p.correlation is None else f"{p.correlation:.2f}"
        lines.append(
            f"| {p.budget:g} | {p.fraction:.3f} | {p.spread:.3f} | {p.accuracy:.2%} | {p.paths} "
            f"| {p.cheapest:.1%} | {p.calibration_error:.3f} | {rho} |"
        )
    return "\n".join(lines)


def _sections(card: Card, findings: Findings) -> list[tuple[str, str, str]]:
    """Picture, heading and sentence of each."""
    at = f"at budget {findings.focus:g}"
    ours, full = findings.ours, findings.full
    easy, hard = findings.deciles[0], findings.deciles[-1]
    low, high = findings.classes[0], findings.classes[-1]
    cheapest = int((ours.fraction == ours.fraction.min()).sum())
    dearest = int((ours.fraction == ours.fraction.max()).sum())
    return [
        (
            "images",
            "The cheapest and the dearest images",
            f"{TILES} of each {at}, with the answer and the compute; a wrong answer is red, with "
            f"the true label below it. {cheapest} images cost as little as the cheapest "
            f"({ours.fraction.min():.1%}), {dearest} as much as the dearest "
            f"({ours.fraction.max():.1%}); of equal ones, some are shown by lot.",
        ),
        (
            "difficulty",
            "Compute and difficulty",
            f"Test images in tenths by the full network's loss: {at} the easiest get "
            f"{easy.fraction:.1%} of the compute, the hardest {hard.fraction:.1%}. The rank "
            f"correlation of compute and loss is {_rho(findings)} (0: no relation; 1: the harder, "
            f"the more). Images that the full network gets wrong, {1 - full.accuracy:.1%} of all, "
            f"get {_mean(ours.fraction[~full.right])}, the others "
            f"{_mean(ours.fraction[full.right])}.",
        ),
        (
            "classes",
            "Compute of each class",
            f"{at.capitalize()} images of `{high.label}` get most, {high.fraction:.1%} on "
            f"average, and those of `{low.label}` least, {low.fraction:.1%}. Left: the mean (bar) "
            "and the middle half of the images (line); right: accuracy beside the full network's.",
        ),
        (
            "widths",
            "Where in the network it is spent",
            f"Groups computed of each layer's {card.backbone.groups}, mean over all images, for "
            "each budget; budget 1 is the full network.",
        ),
        (
            "corruption",
            "Corrupted images",
            f"The penalty stays that of budget {findings.focus:g}, so compute is free to change: "
            f"{_compute_when_corrupted(findings)}. Settings as in CIFAR-10-C: noise of deviation "
            "0.04 to 0.10, blur of 0.4 to 1.0 pixel in 32, JPEG of quality 80 to 40.",
        ),
        (
            "reliability",
            "Confidence and accuracy",
            "Answers in 15 bins by confidence, the area of a point being its share of the images; "
            "on the line, an answer of 80 % confidence is right in 80 % of cases. The error is the "
            "mean distance from it (expected calibration error).",
        ),
    ]


def _compute_when_corrupted(findings: Findings) -> str:
    """From the images as they are to the strongest corruption."""
    parts = []
    for kind, name in KINDS.items():
        first, *_, last = (row for row in findings.corrupted if row.kind == kind)
        parts.append(
            f"{name} takes it from {first.fraction:.1%} to {last.fraction:.1%} "
            f"(accuracy {last.accuracy:.1%}, full network {last.full:.1%})"
        )
    return "; ".join(parts)


def _rho(findings: Findings) -> str:
    (point,) = (point for point in findings.budgets if point.budget == findings.focus)
    return "undefined" if point.correlation is None else f"{point.correlation:.2f}"


def _mean(fractions: FloatArray) -> str:
    return f"{fractions.mean():.1%}" if len(fractions) else "nothing"
