"""A run so small that its stages take a second, in memory and as a command."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from models import backbones
from models.compute import mac_table, path_macs
from models.config import BLEND, AgentConfig, BackboneConfig, ConvConfig
from models.network import Network
from models.preprocess import Preprocessing
from training.batches import Augmentation, Batches, generator
from training.checkpoint import Checkpoints
from training.data import Images
from training.run import Run
from training.settings import from_dict
from training.supernet import draw_paths

ROOT = Path(__file__).parents[2]
SIZE = 12
COLOURS = {"cat": (150, 90, 90), "dog": (90, 150, 90), "emu": (90, 90, 150)}
SETTINGS = {
    "backbone": {"width": 0.125, "image_size": SIZE},
    "supernet": {"epochs": 3, "batch_size": 16, "learning_rate": 0.05, "precision": "float32"},
    "paths": {"count": 3, "images": 20},
    "finetune": {"epochs": 2},
    "agent": {"recordings": 2, "images": 50, "epochs": 2, "batch_size": 32},
    "calibration": {"points": 4},
    "threads": 1,
}


def pixels(label, count, seed):
    """(count, SIZE, SIZE, 3) uint8, weak to strong noise about the colour of a class."""
    rng = np.random.default_rng(seed)
    noise = rng.uniform(-100, 100, (count, SIZE, SIZE, 3)) * rng.uniform(0, 1, (count, 1, 1, 1))
    return (noise + COLOURS[label]).clip(0, 255).astype(np.uint8)


def coloured(count, seed=0):
    """Images of three classes in turn, in memory."""
    parts = [pixels(name, count, seed + 10 * i) for i, name in enumerate(COLOURS)]
    labels = np.arange(count) % len(COLOURS)
    content = np.stack(parts)[labels, np.arange(count)]
    return Images(content, labels, np.arange(count), tuple(COLOURS))


def save_pictures(root, train=40, test=20):
    """Write class folders of PNG files, split in train and test."""
    for seed, (split, count) in enumerate((("train", train), ("test", test))):
        for number, label in enumerate(COLOURS):
            folder = root / split / label
            folder.mkdir(parents=True)
            for i, image in enumerate(pixels(label, count, 100 * seed + number)):
                Image.fromarray(image).save(folder / f"{i:03}.png")
    return root


PREPROCESSING = Preprocessing(SIZE, SIZE, (0.4, 0.4, 0.4), (0.2, 0.2, 0.2))


def plain_batches(images, size):
    """Shuffled batches of images as they are."""
    unchanged = Augmentation(shift=0.0, crop=1.0, flip=False, cutout=0.0, size=0)
    cpu = torch.device("cpu")
    return Batches(images, PREPROCESSING, size=size, seed=0, augmentation=unchanged, device=cpu)


def tiny_run(folder, train=64, **changes):
    """A run on images in memory, `changes` are sections of settings."""
    named = ("backbone", "supernet", "paths", "finetune", "agent")
    sections = {name: dict(SETTINGS[name]) for name in named}
    for name, section in changes.items():
        sections[name] |= section
    config = from_dict({**sections, "work": str(folder)})
    backbone = backbones.build("mcifarnet", len(COLOURS), width=0.125, image_size=SIZE)
    checkpoints = Checkpoints(config.work_dir)
    return Run(config, PREPROCESSING, backbone, coloured(train), coloured(30, 99), checkpoints)


def chain(layers=3, channels=4, groups=2, size=6):
    """A chain of 3×3 convolutions of equal channels."""
    shapes = [3] + [channels] * layers
    convs = tuple(
        ConvConfig(f"conv{i}", f"norm{i}", shapes[i], shapes[i + 1]) for i in range(layers)
    )
    return BackboneConfig("chain", size, convs, (3,), ("linear",), groups)


def lively_network(backbone=None, form="priced", seed=0, looks=0, views="image"):
    """A random network in evaluation mode whose agent sends images along many paths."""
    torch.manual_seed(seed)
    backbone = backbone or chain(5, 8, 4)
    paths = ()
    if form == "paths":
        drawn = draw_paths(40, backbone, generator(seed)).tolist()
        paths = _rising(backbone, drawn)
    blend = BLEND if views == "both" else 0.0
    agent = AgentConfig(form, 8, 16, paths, looks, views=views, blend=blend)
    network = Network(backbone, agent)
    _estimate_statistics(network)
    with torch.no_grad():
        if form == "paths":
            _spread_gains(network.eval())
        else:
            for encoder in network.agent.encoder.values():
                encoder.weight.mul_(20)
            network.agent.decoder.weight.mul_(5)
    return network.eval()


def _rising(backbone, drawn):
    """The narrowest path, the whole one, and up to three of those drawn, by rising MACs."""
    table, n_layers = mac_table(backbone, AgentConfig()), backbone.n_layers
    ends = [[1] * n_layers, [backbone.groups] * n_layers]
    paths = np.array([*ends, *(path for path in drawn if path not in ends)])
    macs, first = np.unique(path_macs(paths, table, agent=False), return_index=True)
    between = first[1:-1][:: max((len(macs) - 2) // 3, 1)][:3]
    return tuple(tuple(path) for path in paths[[first[0], *between, first[-1]]].tolist())


def _spread_gains(network):
    """Let each path gain on some images, and lose on others, as much as any path costs."""
    contrast = torch.linspace(0.1, 1.5, 60)[:, None, None, None]
    images = torch.randn(60, 3, *[network.backbone.image_size] * 2) * contrast
    agent = network.agent
    for look in range(agent.config.deciding):
        seen = agent.seen(*network.look(images, look))
        gains, last = agent(look, seen, torch.full((60,), 0.3)), agent.layers(look)[-1]
        last.weight.div_(gains.std(dim=0)[:, None])
        last.bias.sub_(gains.mean(dim=0)).div_(gains.std(dim=0))


@torch.no_grad()
def _estimate_statistics(network):
    """Normalise for every input width, or else hardly anything reaches the end."""
    k, n_layers, size = network.backbone.groups, network.backbone.n_layers, 32
    for conv in network.convs:
        conv.momentum = 1.0
    for width in range(1, k + 1):
        for first in (0, 1):
            path = [width if layer % 2 == first else k for layer in range(n_layers)]
            network.train()(torch.randn(size, 3, *[network.backbone.image_size] * 2), path)
    for conv in network.convs:
        conv.momentum = 0.1


def run_training(*arguments, cwd):
    """Run `python -m training …` as a user does; warnings fail it."""
    command = [sys.executable, "-W", "error::UserWarning", "-m", "training", *map(str, arguments)]
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PATH": ""}
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, env=environment)


def fit_flags(data, folder, *settings):
    """Flags of a tiny `fit` whose files are all under `folder`, the bundle in `folder/bundle`."""
    flags = ["fit", "--data", str(data), "--out", str(folder / "bundle"), "--threads", "1"]
    pairs = [
        f"{section}.{name}={value}"
        for section, values in SETTINGS.items()
        if isinstance(values, dict)
        for name, value in values.items()
    ]
    places = [f"work={folder / 'work'}", f"data.cache={folder / 'cache'}"]
    for setting in (*pairs, *places, *settings):
        flags += ["--set", setting]
    return flags


def features_of(agent, look):
    """How many features the agent sees of a path."""
    return agent.layers(look)[0].in_features - 1


def of_each(worth):
    """Of three paths, whatever path was before."""
    return [worth[:, :1], worth[:, 1:2], worth[:, 2:].expand(-1, 2)]
