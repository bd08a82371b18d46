"""What a network was trained on, as its card tells: images that it may know must judge nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from models.bundle import Bundle
from models.card import Card
from training.config import Config
from training.data import Images
from training.errors import ConfigError


def data_of(source: str, train: Images, held_out: Images) -> dict[str, Any]:
    """What a card tells of the images that a network was trained on."""
    return {
        # A local path says where, which is nobody's business but the trainer's; the name, what.
        "source": Path(source).name,
        "train": len(train),
        "held_out": len(held_out),
        "digest": train.digest,
    }


def lineage(card: Card) -> dict[str, Any]:
    """What the card of a bundle that starts from this one tells of it, and of those before it."""
    split = {"data": dict(card.data), "seed": card.seed, "labels": list(card.labels)}
    return {**card.training, **split}


def check_split(start: Bundle, config: Config, train: Images, held_out: Images) -> None:
    """Refuse to choose or test by images that a bundle was trained on: all would be too sure.

    Raises:
        ConfigError: it was, or a bundle was that it was started from.
    """
    name, told = f"bundle {start.path}", lineage(start.card)
    while told:
        # Older cards do not tell it of those before them.
        if "data" in told:
            _check_split(name, told, config, train, held_out)
        name, told = f"a bundle that {start.path} was started from", told.get("started_from", {})


def _check_split(
    name: str, told: Mapping[str, Any], config: Config, train: Images, held_out: Images
) -> None:
    data, seed, labels = told["data"], told["seed"], told["labels"]
    alike = data.get("source") == Path(config.data.source).name and tuple(labels) == train.names
    # Older cards have no digest.
    digest = data.get("digest", train.digest if alike else None)
    if not alike and digest != train.digest:
        return
    kept, images = data.get("held_out", 0), len(train) + len(held_out)
    if digest != train.digest or data.get("train", 0) + kept != images:
        raise ConfigError(
            f"data {config.data.source!r} has changed since {name} was trained on it, perhaps on "
            "what is held out or tested now: bring the images of then back, or do not start from it"
        )
    if (seed, kept) != (config.seed, len(held_out)):
        raise ConfigError(
            f"setting seed is {config.seed} and {len(held_out)} images are held out, but {name} "
            f"was trained on some of them: set seed={seed} and data.held_out={kept}, as its card "
            "has them"
        )


def check_set_aside(images: Images, source: str, name: str, data: Mapping[str, Any]) -> None:
    """Refuse test images that were set aside from others than those that a network did without.

    Args:
        images: of `load_test`. name: of the network.
        data: what its card tells of its data; what it does not tell is not checked.

    Raises:
        ConfigError: the source is the network's, has no test split, and has changed.
    """
    # Of a split of their own all images are in the set.
    others = len(images.pixels) - len(images)
    if not others or data.get("source") != Path(source).name:
        return
    then: dict[str, Any] = {"digest": images.digest, "train": others, "held_out": 0} | dict(data)
    if (then["digest"], then["train"] + then["held_out"]) != (images.digest, others):
        raise ConfigError(
            f"data {source!r} has no test split, and has changed since {name} was trained on it, "
            "perhaps on the fifth that would be its test images now: bring the images of then "
            "back, or give it a test split"
        )
