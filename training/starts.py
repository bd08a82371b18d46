"""What static networks are made from: finished ones, and bundles' full networks and paths."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from torch import Tensor

from models.bundle import CARD, Bundle, read_bundle
from models.config import BackboneConfig
from models.network import Network
from models.weights import trainable
from training import pruning
from training.errors import ConfigError
from training.run import Run, channels_last
from training.splits import check_split

REPORT, WEIGHTS = "static.json", "model.safetensors"


@dataclass(frozen=True)
class Trained:
    """A static network that was trained.

    Attributes:
        folder: where it lies.
        report: what its JSON file tells.
        digest: SHA-256 of its weights.
        bundle: whose full network it is, if it is one's.
    """

    folder: Path
    network: Network
    report: dict[str, Any]
    digest: str
    bundle: Bundle | None = None


def read(folder: Path) -> Trained:
    """A finished static network, for inference.

    Raises:
        ConfigError: the folder holds none.
    """
    try:
        report = json.loads((folder / REPORT).read_text())
        content = (folder / WEIGHTS).read_bytes()
        network = Network(BackboneConfig.from_dict(report["backbone"]))
        network.load_state_dict(agent_of(network) | load_tensors(content))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(f"{folder} holds no finished static network: {reason}") from error
    digest = hashlib.sha256(content).hexdigest()
    return Trained(folder, channels_last(network).eval().requires_grad_(False), report, digest)


def read_start(folder: Path) -> Trained:
    """A finished static network, or a bundle's full network, whose statistics are still missing.

    Raises:
        ConfigError, BundleError: the folder holds neither.
    """
    if not (folder / CARD).is_file():
        return read(folder)
    bundle = read_bundle(folder)
    network = plain(trainable(bundle.card.backbone, bundle.tensors))
    report = {"method": "plain", "labels": list(bundle.card.labels)}
    network = channels_last(network).eval().requires_grad_(False)
    return Trained(folder, network, report, bundle.digest, bundle)


def plain(network: Network) -> Network:
    """The full network of a prunable one, as a network of one group."""
    single = Network(replace(network.backbone, groups=1))
    values = single.state_dict()
    for name, value in network.state_dict().items():
        if name in values and not name.startswith("agent."):
            # Of normalisation the row of the whole input.
            rows = name.rpartition(".")[2] in ("gamma", "beta", "mean", "var")
            values[name] = value[-1:] if rows else value
    single.load_state_dict(values)
    return single


def agent_of(network: Network) -> dict[str, Tensor]:
    """Weights that a static network has but never uses, and never saves."""
    return {k: v for k, v in network.state_dict().items() if k.startswith("agent.")}


def check_start(start: Trained, run: Run) -> None:
    """Refuse a start that is not the plain network of these settings, or may know test images."""
    report, folder = start.report, start.folder
    if report["method"] != "plain":
        raise ConfigError(f"--start {folder} is of --method {report['method']}, not plain")
    if start.network.backbone != run.backbone or tuple(report["labels"]) != run.train.names:
        raise ConfigError(f"--start {folder} has another backbone, or other classes")
    if start.bundle is not None:
        check_split(start.bundle, run.config, run.train, run.held_out)
    elif report.get("digest", run.train.digest) != run.train.digest:  # older reports have none
        raise ConfigError(
            f"--start {folder} was trained on other images than {run.config.data.source!r} "
            "has now, perhaps on what is held out or tested: train it anew"
        )


def searched(bundle: Bundle, fraction: float, run: Run) -> BackboneConfig:
    """The backbone with as many channels a layer as the dearest path of a bundle within a fraction.

    Raises:
        ConfigError: the bundle is of another network, or knows test images, or has no path that is
            cheap enough.
    """
    card, folder = bundle.card, bundle.path
    if replace(card.backbone, groups=1) != run.backbone or card.labels != run.train.names:
        raise ConfigError(f"--widths {folder} has another backbone, or other classes")
    if not card.agent.paths:
        raise ConfigError(f"--widths {folder} has no paths: its agent decides layer by layer")
    check_split(bundle, run.config, run.train, run.held_out)
    return pruning.dearest_within(card.backbone, card.agent.paths, fraction)
