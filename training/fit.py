"""From labelled images to a bundle: the stages of a run, in order, each resumable."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from models.agent import new_agent
from models.bundle import Bundle, write_bundle
from models.card import CalibrationPoint, Card
from models.config import AgentConfig
from models.network import Network
from models.storage import Tensors, pack, unpack
from models.weights import export
from training import finetune, layerwise, paths, pathwise, settings, supernet
from training.calibration import calibrate, fit_temperature
from training.config import Config
from training.errors import CheckpointError, ConfigError
from training.evaluation import measure_budgets, network_of, picture, table, test_images
from training.measure import Policy, commit
from training.pretrained import begin
from training.run import Run
from training.splits import data_of, lineage

_SEARCH = ("paths.count", "paths.images")
_OF_PATHS = ("agent.rule", "agent.looks", "agent.sees", "agent.views", "agent.blend", *_SEARCH)
# What would be ignored if it were set, by the setting that makes it so.
_UNUSED = {
    "agent.form=paths": ("agent.encoding", "agent.ways", "agent.epsilon", "agent.penalty"),
    "agent.form=priced": ("agent.penalty", *_OF_PATHS),
    "agent.form=paper": _OF_PATHS,
    "supernet.epochs=0": ("supernet.learning_rate", "supernet.random_paths"),
    "finetune.epochs=0": ("finetune.learning_rate",),
}


def fit(config: Config, *, resume: bool) -> None:
    """Run all stages, or those that are left, and write the bundle.

    Raises:
        TrainingError: anything the user can mend; nothing half-written is left at `--out`.
    """
    _check(config)
    run = Run.open(config, resume=resume)
    _check_stages(run)
    network = begin(run)
    _train(run, network)
    packed = pack(export(network), config.export.weights)
    bundle = _bundle(run, network, unpack(packed))
    bundle = _evaluated(run, bundle)
    write(bundle, packed)
    print(f"bundle written to {config.out}")


def _check(config: Config) -> None:
    backbone = config.backbone
    if backbone.groups == 1:
        raise ConfigError("setting backbone.groups is 1: one group cannot be pruned, ask for more")
    agent = config.agent
    if agent.form == "paths" and agent.views == "both" and not config.supernet.flip:
        raise ConfigError(
            "setting agent.views is 'both', but supernet.flip is false, so mirrored images are not "
            "taught: set agent.views=image"
        )
    start = backbone.pretrained
    if config.supernet.epochs == 0 and not (start and Path(start).expanduser().is_dir()):
        raise ConfigError(
            "setting supernet.epochs is 0: give it some, or start from a bundle with "
            "backbone.pretrained"
        )
    form = f"agent.form={agent.form}"
    _check_unused(config, form, _UNUSED[form], {})


def _check_stages(run: Run) -> None:
    """Complain before any stage of what some will leave unused, and of what no paths can be."""
    config, past = run.config, {}
    if run.start is not None:
        past = settings.flatten(run.start.card.training)
    for stage, epochs in (
        ("supernet", config.supernet.epochs),
        ("finetune", config.finetune.epochs),
    ):
        if epochs == 0:
            case = f"{stage}.epochs=0"
            _check_unused(config, case, _UNUSED[case], past)
    if config.agent.form == "paths":
        paths.ends(run.backbone, config.agent)
        if paths.kept(run):
            _check_unused(config, "supernet.epochs=0", _SEARCH, past)


def _check_unused(config: Config, case: str, names: Sequence[str], past: Mapping[str, Any]) -> None:
    """Refuse settings that would be ignored, but for defaults and what was used in the past."""
    now, default = (settings.flatten(settings.to_dict(c)) for c in (config, Config()))
    for name in names:
        if now[name] not in (default[name], past.get(name)):
            raise ConfigError(
                f"setting {name} is {now[name]!r}, but with {case} it is not used: leave it at "
                f"{default[name]!r}"
            )


def _train(run: Run, network: Network) -> None:
    wanted = run.config.agent
    supernet.train(run, network)
    if wanted.form == "paths":
        found = paths.find(run, network)
        finetune.train(run, network, [list(path) for path in found.paths[1:-1]])
        _give_agent(run, network, found)
        pathwise.train(run, network)
    else:
        finetune.train(run, network, None)
        _give_agent(run, network, AgentConfig(wanted.form, wanted.encoding, wanted.hidden))
        layerwise.train(run, network)


def _give_agent(run: Run, network: Network, config: AgentConfig) -> None:
    torch.manual_seed(run.config.seed + run.config.agent.seed)
    network.agent = new_agent(run.backbone, config).to(run.device)


def _bundle(run: Run, network: Network, tensors: Tensors) -> Bundle:
    """The bundle in memory, calibrated on the weights as they are served."""
    config = run.config
    card = Card(
        name=Path(config.out).name,
        labels=run.train.names,
        backbone=run.backbone,
        agent=network.agent.config,
        preprocessing=run.preprocessing,
        calibration=(),
        data=data_of(config.data.source, run.train, run.held_out),
        seed=config.seed,
        training=_told(run),
        git_commit=commit(),
    )
    bundle = Bundle(card, tensors, Path(config.out), "")
    points, temperature = _calibration(run, bundle)
    card = replace(card, calibration=points, temperature=temperature)
    return replace(bundle, card=card)


def _calibration(run: Run, bundle: Bundle) -> tuple[tuple[CalibrationPoint, ...], float]:
    """Penalties and temperature."""
    checkpoint = run.checkpoints.load("calibration")
    if checkpoint is not None:
        state = checkpoint.state
        return tuple(CalibrationPoint(**point) for point in state["points"]), state["temperature"]
    policy = Policy(network_of(bundle).to(run.device), run.held_out, run.preprocessing)
    points = calibrate(
        policy,
        highest_penalty=max(run.config.agent.penalties),
        points=run.config.calibration.points,
    )
    temperature = fit_temperature(policy, points)
    state = {"points": [asdict(point) for point in points], "temperature": temperature}
    run.checkpoints.save("calibration", state)
    return points, temperature


def _evaluated(run: Run, bundle: Bundle) -> Bundle:
    config, card = run.config, bundle.card
    images = test_images(card, config.data.source, config.cache_dir)
    budgets = [b for b in config.evaluation.budgets if b >= card.min_fraction]
    network = network_of(bundle).to(run.device)
    points = measure_budgets(network, card, images, budgets)
    print(table(card, points, len(images)))
    return replace(bundle, card=replace(card, test=points))


def write(bundle: Bundle, packed: Tensors) -> None:
    """Write a bundle and its picture.

    Raises:
        CheckpointError: it cannot be written; nothing half-written is left.
    """
    curve = picture(bundle.card, bundle.card.test)
    try:
        write_bundle(bundle.path, bundle.card, packed, curve)
    except OSError as error:
        raise CheckpointError(f"bundle {bundle.path} cannot be written: {error}") from error


def _told(run: Run) -> dict[str, object]:
    """The settings that a card tells: what was computed, not where, and from what it started."""
    sections, start = settings.to_dict(run.config), run.start
    if start is not None:
        sections["backbone"]["pretrained"] = start.card.name
    earlier = {} if start is None else {"started_from": lineage(start.card)}
    return earlier | {
        name: sections[name]
        for name in (
            "backbone",
            "supernet",
            "paths",
            "finetune",
            "agent",
            "calibration",
            "evaluation",
            "export",
        )
    }
