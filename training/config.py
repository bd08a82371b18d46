"""What can be set in a training run, with defaults; `training.settings` reads files and flags."""

from __future__ import annotations

from dataclasses import field
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, ConfigDict, Field, StrictBool
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from models.config import Sees, Views
from models.storage import Storage


def _no_bool(value: object) -> object:
    if isinstance(value, bool):
        raise PydanticCustomError("number_type", "Input should be a number")
    return value


# Numbers may be text too: YAML 1.1 reads 1e-3 as text, and flags are text anyway.
_Int = Annotated[int, BeforeValidator(_no_bool)]
_Float = Annotated[float, BeforeValidator(_no_bool), Field(allow_inf_nan=False)]
Count = Annotated[_Int, Field(ge=0)]
Positive = Annotated[_Int, Field(gt=0)]
Amount = Annotated[_Float, Field(ge=0)]
PositiveAmount = Annotated[_Float, Field(gt=0)]
Share = Annotated[_Float, Field(ge=0, le=1)]
PositiveShare = Annotated[_Float, Field(gt=0, le=1)]
Blend = Annotated[_Float, Field(ge=0, lt=1)]

_CLOSED = ConfigDict(extra="forbid")


@dataclass(frozen=True, config=_CLOSED)
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
    resize: Count = 0
    held_out: Count = 0
    cache: str = "~/.cache/runtime-neural-pruning"


@dataclass(frozen=True, config=_CLOSED)
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
    width: PositiveAmount = 1.0
    image_size: Count = 0
    pretrained: str | None = None
    groups: Positive = 4


@dataclass(frozen=True, config=_CLOSED)
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

    epochs: Count = 24
    batch_size: Positive = 128
    learning_rate: Amount = 0.1
    weight_decay: Amount = 5e-4
    random_paths: Count = 1
    label_smoothing: Share = 0.1
    shift: Share = 0.125
    crop: PositiveShare = 1.0
    flip: StrictBool = True
    cutout: Share = 0.0
    crop_size: Count = 0
    cutmix: Share = 0.0
    precision: Literal["auto", "float32", "bfloat16"] = "auto"


@dataclass(frozen=True, config=_CLOSED)
class Paths:
    """The second stage: a search for the paths among which an agent of the form "paths" chooses.

    Attributes:
        count: paths to choose from, beside the narrowest and the full network.
        images: held-out images on which paths are compared.
    """

    count: Positive = 4
    images: Positive = 1000


@dataclass(frozen=True, config=_CLOSED)
class Finetune:
    """The third stage: the backbone along many paths in every batch.

    These are the ones found, or random ones if the agent decides layer by layer.

    Attributes:
        epochs: passes over the training images.
        learning_rate: at the start; it falls to zero.
    """

    epochs: Count = 4
    learning_rate: Amount = 0.01


@dataclass(frozen=True, config=_CLOSED)
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
        blend: of "paths", what the answer before counts in the next; null: where it looks at both
            views, what leaves most of the held-out images right, see `training.pathwise`.
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
        penalties: lowest and highest penalty that "paths" and "priced" draw; calibration tries up
            to the highest in every form.
        penalty: the fixed one of "paper", per group.
        seed: added to the run's where the agent begins, and where one of "paths" learns: how much
            hangs on chance, on one backbone.
    """

    form: Literal["paths", "priced", "paper"] = "paths"
    rule: Literal["right", "loss", "gumbel", "supervised"] = "right"
    looks: Count = 0
    sees: Sees = "answer"
    views: Views = "both"
    blend: Blend | None = None
    hidden: Positive = 64
    recordings: Positive = 6
    images: Positive = 15000
    epochs: Count = 24
    batch_size: Positive = 1024
    learning_rate: Amount = 2e-3
    encoding: Positive = 32
    ways: Positive = 3
    epsilon: Share = 0.1
    penalties: tuple[PositiveAmount, ...] = (0.003, 3.0)
    penalty: Amount = 0.02
    seed: Count = 0


@dataclass(frozen=True, config=_CLOSED)
class Calibration:
    """From budget to penalty.

    Attributes:
        points: penalties measured on the held-out images.
    """

    points: Positive = 32


@dataclass(frozen=True, config=_CLOSED)
class Evaluation:
    """What the test images are asked.

    Attributes:
        budgets: mean shares of the full MACs at which test images are classified.
    """

    budgets: tuple[PositiveShare, ...] = (0.1, 0.125, 0.15, 0.2, 0.25, 0.33, 0.4, 0.6, 0.8)


@dataclass(frozen=True, config=_CLOSED)
class Export:
    """What is written.

    Attributes:
        weights: how the bundle's file holds them, see `models.storage`; "int8" makes it half as
            large.
    """

    weights: Storage = "float16"


@dataclass(frozen=True, config=_CLOSED)
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
    seed: Count = 0
    out: str = ""
    work: str = ""
    threads: Count = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"

    @property
    def work_dir(self) -> Path:
        """Directory of checkpoints and logs."""
        return Path(self.work).expanduser() if self.work else Path("runs") / Path(self.out).name

    @property
    def cache_dir(self) -> Path:
        """Directory of decoded images."""
        return Path(self.data.cache).expanduser()
