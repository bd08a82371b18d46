"""What can be set in a training run, with defaults; `training.settings` reads files and flags."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal


@dataclass(frozen=True)
class Data:
    """Where the images come from.

    Attributes:
        source: a folder of class folders, a folder of parquet files, or a hub id.
        held_out: training images held out for choices and calibration; 0 means a tenth, at most
            5000.
        cache: folder for decoded images.
    """

    source: str = ""
    held_out: int = 0
    cache: str = "~/.cache/runtime-neural-pruning"


@dataclass(frozen=True)
class Backbone:
    """The network that is pruned.

    Attributes:
        width: factor on the channels of every layer.
        image_size: side of the input, in pixels; 0 means the backbone's own.
        pretrained: a plain state dict of this architecture to start from.
        groups: k, the slices of each layer's channels.
    """

    name: str = "mcifarnet"
    width: float = 1.0
    image_size: int = 0
    pretrained: str | None = None
    groups: int = 4


@dataclass(frozen=True)
class Supernet:
    """The first stage: a backbone whose every sub-network works.

    Attributes:
        learning_rate: its peak; it falls in one line to zero.
        random_paths: random sub-networks per step, beside the full and the narrowest one.
        shift, flip, cutout: see `training.batches.Augmentation`.
        precision: of the convolutions; weights and statistics are always float32.
    """

    epochs: int = 24
    batch_size: int = 128
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    random_paths: int = 1
    label_smoothing: float = 0.1
    shift: float = 0.125
    flip: bool = True
    cutout: float = 0.0
    precision: Literal["float32", "bfloat16"] = "bfloat16"


@dataclass(frozen=True)
class Finetune:
    """The second stage: the backbone along many random paths in every batch.

    Attributes:
        learning_rate: at the start; it falls to zero.
    """

    epochs: int = 4
    learning_rate: float = 0.01


@dataclass(frozen=True)
class Agent:
    """The third stage: the decision network and its Q-learning.

    Attributes:
        form: "priced" takes the penalty as an input and prices MACs; "paper" is trained at one
            fixed penalty per group.
        penalty: that fixed penalty; the priced form draws its own.
        penalties: lowest and highest penalty that the priced form draws; calibration tries up to
            the highest in either form.
        glance: whether the priced form runs the narrowest path first and decides on its opinion;
            the paper's has no glance.
        recordings: how often episodes are recorded with the agent of the time.
        images: training images used in one recording.
        paths: ways that each of them is sent along.
        epochs: passes over all episodes after each recording.
        epsilon: ε of the last recording; it falls from 1. See `training.qlearning`.
    """

    form: Literal["priced", "paper"] = "priced"
    penalty: float = 0.02
    penalties: tuple[float, ...] = (0.003, 3.0)
    glance: bool = True
    encoding: int = 32
    hidden: int = 64
    recordings: int = 6
    images: int = 15000
    paths: int = 3
    epochs: int = 6
    batch_size: int = 1024
    learning_rate: float = 2e-3
    epsilon: float = 0.1


@dataclass(frozen=True)
class Rounds:
    """The fourth stage: backbone and agent trained in turn.

    Attributes:
        count: how often, after the first agent. None by default: the one that was tried, of one
            epoch at this learning rate, lost accuracy on held-out images at every width.
        epochs: of the backbone along the agent's paths in each round.
        learning_rate: of the backbone, falling to zero in each round.
        random_share: of the images that take a random path instead of the agent's.
    """

    count: int = 0
    epochs: int = 2
    learning_rate: float = 0.01
    random_share: float = 0.25


@dataclass(frozen=True)
class Calibration:
    """From budget to penalty.

    Attributes:
        points: penalties measured on the held-out images.
    """

    points: int = 32


@dataclass(frozen=True)
class Evaluation:
    """What the test images are asked.

    Attributes:
        budgets: mean shares of the full MACs at which test images are classified.
    """

    budgets: tuple[float, ...] = (0.15, 0.25, 0.4, 0.6, 0.8)


@dataclass(frozen=True)
class Config:
    """All settings of a run.

    Attributes:
        out: directory of the bundle to write; it must not exist.
        work: directory of checkpoints and logs; by default `runs/` and the bundle's name.
        threads: CPU threads; 0 leaves torch its default.
    """

    data: Data = field(default_factory=Data)
    backbone: Backbone = field(default_factory=Backbone)
    supernet: Supernet = field(default_factory=Supernet)
    finetune: Finetune = field(default_factory=Finetune)
    agent: Agent = field(default_factory=Agent)
    rounds: Rounds = field(default_factory=Rounds)
    calibration: Calibration = field(default_factory=Calibration)
    evaluation: Evaluation = field(default_factory=Evaluation)
    seed: int = 0
    out: str = ""
    work: str = ""
    threads: int = 0

    @property
    def work_dir(self) -> Path:
        """Directory of checkpoints and logs."""
        return Path(self.work).expanduser() if self.work else Path("runs") / Path(self.out).name

    @property
    def cache_dir(self) -> Path:
        """Directory of decoded images."""
        return Path(self.data.cache).expanduser()
