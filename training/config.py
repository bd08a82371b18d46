"""What can be set in a training run, with defaults; `training.settings` reads files and flags."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from models.config import Sees, Views
from models.storage import Storage


@dataclass(frozen=True)
class Data:
    """Where the images come from.

    Attributes:
        source: a folder of class folders, a folder of parquet files, or a hub id.
        resize: what an image's shorter side is resized to before its centre is cropped to the
            input's size; 0 means the input's size.
        held_out: training images held out for choices and calibration; 0 means a tenth, at most
            5000.
        cache: folder for decoded images.
    """

    source: str = ""
    resize: int = 0
    held_out: int = 0
    cache: str = "~/.cache/runtime-neural-pruning"


@dataclass(frozen=True)
class Backbone:
    """The network that is pruned.

    Attributes:
        name: one of `models.backbones.BACKBONES`.
        width: factor on the channels of every layer.
        image_size: side of the input, in pixels; 0 means the backbone's own.
        pretrained: what to start from: a plain state dict of this architecture, or a bundle of
            this backbone; its classes may be others.
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
        epochs: may be 0 if training starts from a bundle, whose paths are then kept.
        batch_size: images in a step of this stage and the third.
        learning_rate: its peak; it falls in one line to zero.
        weight_decay: of convolutions and linear layers, here and in the third stage.
        random_paths: random sub-networks per step, beside the full and the narrowest one.
        label_smoothing: share of a target that all classes get alike.
        shift, crop, flip, cutout: see `training.batches.Augmentation`.
        crop_size: side of the images made by random crops, in pixels, until statistics are frozen;
            0 means the input's. Smaller ones train faster, and what they show is as large as what
            larger images show in serving (Touvron et al., FixRes, NeurIPS 2019).
        cutmix: share of the batches in which images are pasted into each other, until statistics
            are frozen.
        precision: of the convolutions; weights and statistics are always float32. "auto" is
            bfloat16 where the machine multiplies that, float32 where it would be slower.
    """

    epochs: int = 24
    batch_size: int = 128
    learning_rate: float = 0.1
    weight_decay: float = 5e-4
    random_paths: int = 1
    label_smoothing: float = 0.1
    shift: float = 0.125
    crop: float = 1.0
    flip: bool = True
    cutout: float = 0.0
    crop_size: int = 0
    cutmix: float = 0.0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"


@dataclass(frozen=True)
class Paths:
    """The second stage: a search for the paths among which an agent of the form "paths" chooses.

    Attributes:
        count: paths to choose from, beside the narrowest and the whole network.
        images: held-out images on which paths are compared.
    """

    count: int = 4
    images: int = 1000


@dataclass(frozen=True)
class Finetune:
    """The third stage: the backbone along many paths in every batch.

    These are the ones found, or random ones if the agent decides layer by layer.

    Attributes:
        epochs: passes over the training images.
        learning_rate: at the start; it falls to zero.
    """

    epochs: int = 4
    learning_rate: float = 0.01


@dataclass(frozen=True)
class Agent:
    """The fourth stage: the decision network.

    Attributes:
        form: "paths" runs whole paths until what it has seen will do; "priced" and "paper" decide
            layer by layer, see `models.config.AgentConfig`.
        looks: of "paths", after how many of them it may go on; 0 for all but the last.
        sees: of "paths", whether it decides by a path's answer alone or by its maps as well, see
            `models.config.AgentConfig`.
        views: of "paths", whether it looks at the image alone or at its mirror image as well, see
            `models.config.AgentConfig`; both, only if the backbone learns from mirrored images too
            (`supernet.flip`).
        rule: how "paths" is learnt, see `training.pathwise`.
        hidden: features of its hidden layers, or of its recurrent cell.
        recordings: how often rewards are recorded, each time on newly augmented images, and, layer
            by layer, with the agent of the time.
        images: training images used in one recording.
        epochs: passes over all that was recorded; layer by layer, after each recording.
        batch_size, learning_rate: of these passes.
        encoding: features into which the layer by layer forms encode a layer's input.
        ways: that these send each image along in a recording.
        epsilon: ε of their last recording; it falls from 1. See `training.qlearning`.
        penalties: lowest and highest penalty that "priced" draws; calibration tries up to the
            highest in every form.
        penalty: the fixed one of "paper", per group.
        seed: added to the run's where an agent of "paths" begins and learns: how much hangs on
            chance, on one backbone.
    """

    form: Literal["paths", "priced", "paper"] = "paths"
    rule: Literal["right", "loss", "gumbel", "supervised"] = "right"
    looks: int = 0
    sees: Sees = "answer"
    views: Views = "both"
    hidden: int = 64
    recordings: int = 6
    images: int = 15000
    epochs: int = 24
    batch_size: int = 1024
    learning_rate: float = 2e-3
    encoding: int = 32
    ways: int = 3
    epsilon: float = 0.1
    penalties: tuple[float, ...] = (0.003, 3.0)
    penalty: float = 0.02
    seed: int = 0


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

    budgets: tuple[float, ...] = (0.1, 0.125, 0.15, 0.2, 0.25, 0.33, 0.4, 0.6, 0.8)


@dataclass(frozen=True)
class Export:
    """What is written.

    Attributes:
        weights: how the bundle's file holds them, see `models.storage`; "int8" makes it half as
            large.
    """

    weights: Storage = "float16"


@dataclass(frozen=True)
class Config:
    """All settings of a run.

    Attributes:
        seed: of all that is drawn, which images are held out among it.
        out: directory of the bundle to write; it must not exist.
        work: directory of checkpoints and logs; by default `runs/` and the bundle's name.
        threads: CPU threads; 0 leaves torch its default.
        device: "auto" takes a CUDA GPU if torch finds one.
    """

    data: Data = field(default_factory=Data)
    backbone: Backbone = field(default_factory=Backbone)
    supernet: Supernet = field(default_factory=Supernet)
    paths: Paths = field(default_factory=Paths)
    finetune: Finetune = field(default_factory=Finetune)
    agent: Agent = field(default_factory=Agent)
    calibration: Calibration = field(default_factory=Calibration)
    evaluation: Evaluation = field(default_factory=Evaluation)
    export: Export = field(default_factory=Export)
    seed: int = 0
    out: str = ""
    work: str = ""
    threads: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @property
    def work_dir(self) -> Path:
        """Directory of checkpoints and logs."""
        return Path(self.work).expanduser() if self.work else Path("runs") / Path(self.out).name

    @property
    def cache_dir(self) -> Path:
        """Directory of decoded images."""
        return Path(self.data.cache).expanduser()
