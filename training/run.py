"""What all stages of a run share: settings, data, checkpoints, precision."""

from __future__ import annotations

import ctypes
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from models import backbones
from models.bundle import Bundle, read_bundle
from models.config import BackboneConfig
from models.network import Network
from models.preprocess import Preprocessing
from models.pretrained import load_plain, read_state
from training import settings
from training.backward import Backward
from training.batches import Augmentation, Batch, Batches
from training.checkpoint import Checkpoints
from training.config import Config, Supernet
from training.data import Images, channel_statistics, load_train
from training.errors import CheckpointError, ConfigError
from training.files import check_out
from training.runlog import StageLog
from training.splits import check_split

# Every use of randomness has a number of its own, so that none shifts another's; augmentation has
# those of its epochs, which are lower.
PATHS, RECORDING, LEARNING, MIXING = range(1_000_001, 1_000_005)


@dataclass(frozen=True)
class Run:
    """One run of `fit`.

    Attributes:
        train: training images. held_out: those of the training split kept for every choice.
        device: where networks are trained and images are augmented.
        start: the bundle that the settings name as pretrained weights, if they name one.
    """

    config: Config
    preprocessing: Preprocessing
    backbone: BackboneConfig
    train: Images
    held_out: Images
    checkpoints: Checkpoints
    device: torch.device = field(default_factory=partial(torch.device, "cpu"))
    start: Bundle | None = None

    @classmethod
    def open(cls, config: Config, *, resume: bool) -> Run:
        """Check the settings, load the data, and claim the work directory.

        Raises:
            TrainingError, BundleError: anything the user can mend, before any time is spent.
        """
        _check(config)
        backbone = _backbone(config, 2)  # Complains of a wrong name or size before data is read.
        start = read_start(config, backbone)
        plain = _preprocessing(config, backbone.image_size)
        device = _device(config)
        _prepare(config)
        checkpoints = Checkpoints(config.work_dir)
        if resume:
            settings.check_resumable(config, config.work_dir)
        elif checkpoints.any():
            raise CheckpointError(
                f"{config.work_dir} holds checkpoints of a run: continue it with --resume, "
                "choose another with --set work=…, or remove it"
            )
        check_out(Path(config.out))
        settings.save(config, config.work_dir)
        train, held_out = load_train(
            config.data.source,
            plain,
            held_out=config.data.held_out,
            seed=config.seed,
            cache=config.cache_dir,
            wide=config.supernet.crop < 1,
        )
        if start is not None:
            check_split(start, config, train, held_out)
        inputs = {"data.source": train.digest, "backbone.pretrained": _start_digest(config, start)}
        settings.pin(config, inputs, resume=resume)
        return cls(
            config,
            Preprocessing(plain.size, plain.resize, *channel_statistics(train)),
            _backbone(config, len(train.names)),
            train,
            held_out,
            checkpoints,
            device,
            start,
        )

    def network(self) -> Network:
        """A new network, random or from the pretrained weights that the settings name.

        Its agent is a new one too, which the agent's stage replaces.

        Raises:
            ConfigError: the pretrained weights cannot be read, or are of another network.
        """
        torch.manual_seed(self.config.seed)
        network = Network(self.backbone)
        if path := self.config.backbone.pretrained:
            _load_pretrained(network, Path(path).expanduser())
        return self.placed(network)

    def placed(self, network: Network) -> Network:
        """A network where it is trained, its maps and weights channels-last."""
        return channels_last(network.to(self.device))

    def batches(self, size: int, *, as_served: bool = True) -> Batches:
        """Augmented training batches, of images as large as those served or as the settings say."""
        supernet = self.config.supernet
        augmentation = Augmentation(
            supernet.shift,
            supernet.crop,
            supernet.flip,
            supernet.cutout,
            0 if as_served else supernet.crop_size,
        )
        return Batches(
            self.train,
            self.preprocessing,
            size=size,
            seed=self.config.seed,
            augmentation=augmentation,
            device=self.device,
        )

    def steps(self, batches: Batches, first_epoch: int, start: int, end: int) -> Iterator[Batch]:
        """Batches of steps `start` to `end` of a stage whose epochs count from `first_epoch`."""
        for step in range(start, end):
            epoch, offset = divmod(step, len(batches))
            if step == start or offset == 0:
                epoch_batches = batches.epoch(first_epoch + epoch, offset)
            yield next(epoch_batches)

    def autocast(self) -> torch.autocast:
        """Context in which convolutions run in the precision of the settings."""
        wanted = self.config.supernet.precision
        half = wanted == "bfloat16" or (wanted == "auto" and multiplies_bfloat16(self.device))
        # Without the cache of weights, which a captured step could not refresh.
        return torch.autocast(self.device.type, torch.bfloat16, enabled=half, cache_enabled=False)

    def backward(self, network: Network, *, taught: bool = False) -> Backward:
        """What adds the gradients of a batch along several paths.

        Args:
            taught: whether targets are another network's answers, which are not smoothed.
        """
        smoothing = 0.0 if taught else self.config.supernet.label_smoothing
        return Backward(network, smoothing=smoothing, autocast=self.autocast())

    def log(self, stage: str, steps: int, done: int) -> StageLog:
        """The log of a stage."""
        return StageLog(self.config.work_dir, stage, steps=steps, done=done)


def channels_last(network: Network) -> Network:
    """The network, its maps and weights channels-last."""
    return network.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether a device has instructions for it; others convert, and take twice as long."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _check(config: Config) -> None:
    for name, value in (("--data", config.data.source), ("--out", config.out)):
        if not value:
            raise ConfigError(f"{name} is missing")
    if Path(config.out).exists():
        raise ConfigError(f"bundle directory {config.out} exists: choose another, or remove it")
    penalties = config.agent.penalties
    if len(penalties) != 2 or penalties[0] >= penalties[1]:
        raise ConfigError(
            f"setting agent.penalties is {list(penalties)}: it must be a low and a high penalty"
        )
    _check_augmentation(config)


def _check_augmentation(config: Config) -> None:
    wanted = config.supernet
    if wanted.crop_size and wanted.crop == 1:
        raise ConfigError(
            f"setting supernet.crop_size is {wanted.crop_size}, but without random crops, with "
            "supernet.crop at 1, images are as large as the input: leave it out"
        )
    if wanted.shift == 1:
        raise ConfigError("setting supernet.shift is 1: an image cannot be shifted out of itself")
    if wanted.crop < 1 and wanted.shift != Supernet().shift:
        raise ConfigError(
            f"setting supernet.shift is {wanted.shift}, but with random crops, with supernet.crop "
            f"below 1, images are not shifted: leave it at {Supernet().shift}"
        )


def _preprocessing(config: Config, size: int) -> Preprocessing:
    """How images are resized and cropped, without statistics."""
    resize = config.data.resize or size
    if resize < size:
        raise ConfigError(
            f"setting data.resize is {resize}, but the network's input is {size} × {size} pixels: "
            "resize to that or more"
        )
    return Preprocessing(size, resize, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def _backbone(config: Config, classes: int) -> BackboneConfig:
    wanted = config.backbone
    try:
        return backbones.build(
            wanted.name,
            classes,
            width=wanted.width,
            image_size=wanted.image_size or None,
            groups=wanted.groups,
        )
    except ValueError as error:
        raise ConfigError(f"setting backbone: {error}") from error


def read_start(config: Config, backbone: BackboneConfig) -> Bundle | None:
    """The bundle that the settings name as pretrained weights, if they name one.

    Raises:
        BundleError: it cannot be read.
        ConfigError: it has another backbone (image size and classes may be others), or a file is
            named that cannot be read.
    """
    if config.backbone.pretrained is None:
        return None
    path = Path(config.backbone.pretrained).expanduser()
    if not path.is_dir():
        _plain_state(path)
        return None
    start = read_bundle(path)
    alike = replace(
        backbone, linears=start.card.backbone.linears, image_size=start.card.backbone.image_size
    )
    if start.card.backbone != alike:
        raise ConfigError(
            f"setting backbone.pretrained: bundle {start.path} has another backbone: set "
            "backbone.name, .width and .groups as its card has them"
        )
    return start


def _start_digest(config: Config, start: Bundle | None) -> str | None:
    """Of the bundle or the file that the settings name as pretrained weights."""
    path = config.backbone.pretrained
    if start is not None or path is None:
        return start.digest if start else None
    content = Path(path).expanduser().read_bytes()
    return hashlib.sha256(content).hexdigest()


def _load_pretrained(network: Network, path: Path) -> None:
    try:
        load_plain(network, _plain_state(path))
    except ValueError as error:
        raise ConfigError(f"setting backbone.pretrained: {path}: {error}") from error


def _plain_state(path: Path) -> dict[str, Tensor]:
    try:
        return read_state(path)
    except (OSError, ValueError) as error:
        raise ConfigError(f"setting backbone.pretrained: {path}: {error}") from error


def _device(config: Config) -> torch.device:
    here = torch.cuda.is_available()
    if config.device == "cuda" and not here:
        raise ConfigError("setting device is cuda, but torch finds no CUDA GPU: use cpu or auto")
    return torch.device("cuda" if here and config.device != "cpu" else "cpu")


def _prepare(config: Config) -> None:
    # What is not trained in bfloat16 is computed as on a CPU.
    torch.backends.cudnn.allow_tf32 = False
    if config.threads:
        torch.set_num_threads(config.threads)
    # glibc gives large buffers back to the system after each use and faults them in again:
    # keeping them saves a fifth of a training step on a CPU.
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        m_trim_threshold, m_mmap_max = -1, -4
        libc.mallopt(m_mmap_max, 0)
        libc.mallopt(m_trim_threshold, 2**31 - 1)
