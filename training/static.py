"""Static rivals: one fixed network, trained for as many epochs as ours.

- plain: the full network. The other methods start from it, or from the full network of a bundle,
  and are taught by it, as narrow sub-networks are taught by the full one in the supernet's stage.
- l1: the channels of the plain network with the smallest filters are removed, as large a share of
  every layer, then what is left is trained.
- searched: the same, but each layer keeps as many channels as the best fixed path that the search
  of a bundle found (Yu and Huang, AutoSlim, 2019).
- torch-pruning: that library says which channels of which layers are removed.
- narrow: every layer scaled by one factor, trained from random weights.

All are trained for as many epochs as the settings give our backbone, on the same batches; the
learning rate, supernet.learning_rate at its peak, rises and falls once. Of the test images nothing
is chosen: they are asked once, at the end.

<out>/static.json         what it is and what it reaches, written last
<out>/model.safetensors   its weights, float32
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save as save_tensors
from torch import Tensor

from models import backbones
from models.bundle import read_bundle
from models.config import BackboneConfig, to_dict
from models.network import Network
from models.weights import folded
from training import pruning, settings
from training.batches import Batch
from training.config import Config
from training.data import load_test
from training.errors import ConfigError
from training.files import write_atomic
from training.measure import along, machine
from training.pretrained import sample, settle
from training.run import Run
from training.splits import check_set_aside, data_of
from training.starts import (
    REPORT,
    WEIGHTS,
    Trained,
    agent_of,
    check_start,
    read_start,
    searched,
)
from training.supernet import keep, learning_rate, restore, set_learning_rate, sgd, update

METHODS = ("plain", "l1", "searched", "torch-pruning", "narrow")
BEGIN, STAGE = "static-begin", "static"
# Batches of training images whose gradients rank the channels, taken in turn.
RANKING_BATCHES = 32
CRITERION = "taylor"


@dataclass(frozen=True)
class Wanted:
    """Which static network.

    Attributes:
        method: one of `METHODS`.
        fraction: most MACs, as a share of the full network's; None for the plain network.
        start: folder of the plain network that the others start from, or of a bundle.
        criterion: one of `pruning.CRITERIA`, for Torch-Pruning; None for `CRITERION`.
        widths: folder of the bundle whose dearest path within the fraction says how many channels
            each layer keeps, for the method searched.
    """

    method: str
    fraction: float | None = None
    start: Path | None = None
    criterion: str | None = None
    widths: Path | None = None

    def check(self) -> None:
        """Complain about flags that do not go together.

        Raises:
            ConfigError: with the first that is wrong.
        """
        for flag, value, method in (
            ("--criterion", self.criterion, "torch-pruning"),
            ("--widths", self.widths, "searched"),
        ):
            if value is not None and self.method != method:
                raise ConfigError(
                    f"{flag} {value} is for --method {method}, not {self.method}: leave it out"
                )
        if self.method == "searched" and self.widths is None:
            raise ConfigError("--method searched needs --widths: a bundle, whose paths were found")
        if self.method == "plain":
            if self.fraction is not None or self.start is not None:
                raise ConfigError("--method plain takes neither --fraction nor --start")
        elif self.start is None:
            raise ConfigError(
                f"--method {self.method} needs --start: a bundle, or a folder of --method plain"
            )
        elif self.fraction is None or not 0 < self.fraction < 1:
            raise ConfigError(
                f"--method {self.method} needs a --fraction between 0 and 1, not {self.fraction}"
            )


def static(config: Config, wanted: Wanted, *, resume: bool) -> None:
    """Train and measure one static network; print its JSON.

    Raises:
        TrainingError: anything the user can mend, before any time is spent.
    """
    wanted.check()
    out, name = Path(config.out), config.backbone.name
    if config.out and (out / REPORT).exists():
        raise ConfigError(f"{out} holds a finished network: choose another --out, or remove it")
    if name in backbones.BACKBONES and not pruning.is_chain(backbones.build(name, 2)):
        raise ConfigError(f"backbone {name} has residual layers: only chains are pruned statically")
    if config.supernet.cutmix or config.supernet.crop_size:
        raise ConfigError(
            "settings supernet.cutmix and supernet.crop_size are for ours alone: set both to 0"
        )
    _check_pretrained(config.backbone.pretrained, wanted)
    if wanted.method == "torch-pruning":
        pruning.torch_pruning()
    start = read_start(wanted.start) if wanted.start else None
    widths = read_bundle(wanted.widths) if wanted.widths else None
    # Everything lies in one folder, and is done when the report is there.
    files = replace(config, out=config.out and str(out / REPORT), work=config.work or config.out)
    run = Run.open(files, resume=resume)
    run = replace(run, backbone=replace(run.backbone, groups=1))
    if start is not None:
        check_start(start, run)
        run.placed(start.network)
        if start.bundle is not None:
            settle(start.network, sample(run), [pruning.whole(start.network)])
    small = searched(widths, wanted.fraction, run) if widths and wanted.fraction else None
    network = _begin(run, wanted, start, small)
    train(run, network, start.network if start else None)
    report = _report(run, wanted, network, start)
    state, agent = network.state_dict(), agent_of(network)
    weights = {name: value.contiguous() for name, value in state.items() if name not in agent}
    write_atomic(out / WEIGHTS, save_tensors(weights))
    write_atomic(out / REPORT, (json.dumps(report, indent=1) + "\n").encode())
    print(json.dumps(report))


def _check_pretrained(pretrained: str | None, wanted: Wanted) -> None:
    if pretrained and Path(pretrained).expanduser().is_dir():
        raise ConfigError("setting backbone.pretrained is a folder: start from a bundle by --start")
    if pretrained and wanted.start:
        raise ConfigError(
            f"setting backbone.pretrained is {pretrained!r}, but with --method {wanted.method} it "
            "is not used, --start is: leave it out"
        )


def train(run: Run, network: Network, teacher: Network | None) -> None:
    """Run the stage, or what is left of it; the network is changed in place.

    Args:
        teacher: whose opinion is learnt instead of the labels.
    """
    wanted = run.config.supernet
    batches = run.batches(wanted.batch_size)
    steps = _epochs(run) * len(batches)
    optimizer = sgd(network, wanted.learning_rate, wanted.weight_decay)
    # It only answers: folded, it does so in three quarters of the time.
    teacher = teacher and folded(teacher).to(run.device)
    start = restore(run, STAGE, network, optimizer)
    backward, path = run.backward(network, taught=teacher is not None), pruning.whole(network)
    network.train()
    with run.log(STAGE, steps, start) as log:
        for step, batch in enumerate(run.steps(batches, 0, start, steps), start):
            set_learning_rate(optimizer, learning_rate(step / steps, wanted.learning_rate))
            targets = _opinion(run, teacher, batch) if teacher else batch.labels
            loss, _, answers = backward(batch.images, targets, [path])
            update(optimizer)
            log.advance(len(batch.images))
            if log.step % 50 == 0 or log.step == steps:
                right = (answers.argmax(dim=1) == batch.labels).float().mean()
                log.write(loss=loss.item(), accuracy=right.item())
            if log.step % len(batches) == 0:
                keep(run, STAGE, network, optimizer, log.step)
    network.eval()


def _epochs(run: Run) -> int:
    return run.config.supernet.epochs + run.config.finetune.epochs


@torch.no_grad()
def _opinion(run: Run, teacher: Network, batch: Batch) -> Tensor:
    """The teacher's probabilities (N, classes)."""
    with run.autocast():
        answers: Tensor = teacher(batch.images, pruning.whole(teacher))
    return answers.float().softmax(dim=1)


def _begin(
    run: Run, wanted: Wanted, start: Trained | None, small: BackboneConfig | None
) -> Network:
    """The network before training; a resumed run takes the one that it began with."""
    asked = {
        "--method": wanted.method,
        "--fraction": wanted.fraction,
        "--criterion": _criterion(wanted),
        "--widths": small and [layer.out_channels for layer in small.layers],
        "--start": start and start.digest,
    }
    checkpoint = run.checkpoints.load(BEGIN)
    if checkpoint is None:
        network = run.placed(_made(run, wanted, start, small))
        state = {"asked": asked, "backbone": to_dict(network.backbone)}
        run.checkpoints.save(BEGIN, state | {"network": network.state_dict()})
        return network
    for flag, value in asked.items():
        if value != checkpoint.state["asked"].get(flag):  # older runs know fewer flags
            raise ConfigError(f"{flag} differs from that of the run in {run.config.work_dir}")
    network = Network(BackboneConfig.from_dict(checkpoint.state["backbone"]))
    network.load_state_dict(checkpoint.state["network"])
    return run.placed(network)


def _made(run: Run, wanted: Wanted, start: Trained | None, small: BackboneConfig | None) -> Network:
    if start is None or wanted.fraction is None:
        return run.network()
    torch.manual_seed(run.config.seed)
    if wanted.method == "narrow":
        return Network(pruning.scaled(run.backbone, wanted.fraction))
    if wanted.method == "l1":
        return pruning.by_l1(start.network, pruning.scaled(run.backbone, wanted.fraction))
    if small is not None:
        return pruning.by_l1(start.network, small)
    batches = run.batches(run.config.supernet.batch_size)
    some = islice(batches.epoch(_epochs(run)), RANKING_BATCHES)
    return pruning.by_library(start.network, wanted.fraction, wanted.criterion or CRITERION, some)


def _criterion(wanted: Wanted) -> str | None:
    return wanted.criterion or CRITERION if wanted.method == "torch-pruning" else None


def _report(run: Run, wanted: Wanted, network: Network, start: Trained | None) -> dict[str, Any]:
    config, backbone = run.config, network.backbone
    images = load_test(
        config.data.source, run.preprocessing, names=run.train.names, cache=config.cache_dir
    )
    data = data_of(config.data.source, run.train, run.held_out)
    check_set_aside(images, config.data.source, "this network", data)
    path = np.array([pruning.whole(network)], np.int64)
    macs = pruning.full_macs(backbone)
    sections = settings.to_dict(config)
    return {
        "method": wanted.method,
        "criterion": _criterion(wanted),
        "fraction": macs / pruning.full_macs(run.backbone),
        "macs": macs,
        "accuracy": along(network, images, run.preprocessing, path).accuracy,
        "images": len(images),
        "seed": config.seed,
        "epochs": _epochs(run),
        "channels": [layer.out_channels for layer in backbone.layers],
        "start": start and start.digest,
        "start_bundle": start and start.bundle and start.bundle.card.name,
        "data": data["source"],
        "digest": data["digest"],
        "labels": run.train.names,
        "preprocessing": asdict(run.preprocessing),
        "backbone": to_dict(backbone),
        "settings": {name: sections[name] for name in ("backbone", "supernet", "finetune")},
        "machine": machine(run.device),
        "torch": torch.__version__,
        "date": datetime.now(UTC).date().isoformat(),
    }
