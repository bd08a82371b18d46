"""Backbones from their published shapes. No torch: a shape is enough to count and to serve.

M-CifarNet is from Zhao et al., "Mayo" (2018), as used by FBS (Gao et al., ICLR 2019): its first
convolution has no padding, hence 174 MMACs. VGG-16 is from Simonyan and Zisserman (2015) with
batch normalisation; its CIFAR form has one linear layer (313 MMACs). ResNets are from He et al.
(2016): ResNet-20 with parameter-free shortcuts, ResNet-18 with projections. The keys are those of
torchvision (VGG-16, ResNet-18) and of the usual CIFAR ResNet-20.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from models.config import BackboneConfig, ConvConfig, Shortcut

HALVE = (2, 2, 0)


def mcifarnet(width: float, classes: int, image_size: int, groups: int) -> BackboneConfig:
    """Eight 3×3 convolutions, global average pooling, one linear layer."""
    shapes = ((64, 1), (64, 1), (128, 2), (128, 1), (128, 1), (192, 2), (192, 1), (192, 1))
    layers: list[ConvConfig] = []
    for index, (channels, stride) in enumerate(shapes):
        layers.append(
            ConvConfig(
                name=f"conv{index}",
                norm=f"norm{index}",
                in_channels=layers[-1].out_channels if layers else 3,
                out_channels=_scaled(channels, width, groups),
                stride=stride,
                padding=int(index > 0),
            )
        )
    return BackboneConfig("mcifarnet", image_size, tuple(layers), (classes,), ("linear",), groups)


def vgg16(width: float, classes: int, image_size: int, groups: int) -> BackboneConfig:
    """Thirteen 3×3 convolutions; below 64² one linear layer, else three on a 7×7 map."""
    stages = ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
    layers: list[ConvConfig] = []
    key = 0
    for channels, repeats in stages:
        for repeat in range(repeats):
            last = repeat == repeats - 1
            layers.append(
                ConvConfig(
                    name=f"features.{key}",
                    norm=f"features.{key + 1}",
                    in_channels=layers[-1].out_channels if layers else 3,
                    out_channels=_scaled(channels, width, groups),
                    pool=HALVE if last else None,
                )
            )
            key += 4 if last else 3
    if image_size < 64:
        return BackboneConfig(
            "vgg16", image_size, tuple(layers), (classes,), ("classifier",), groups
        )
    linears = (_scaled(4096, width, groups), _scaled(4096, width, groups), classes)
    names = ("classifier.0", "classifier.3", "classifier.6")
    return BackboneConfig("vgg16", image_size, tuple(layers), linears, names, groups, pool_to=7)


def resnet20(width: float, classes: int, image_size: int, groups: int) -> BackboneConfig:
    """Nine residual blocks of 16, 32 and 64 channels; shortcuts without parameters."""
    stem = ConvConfig("conv1", "bn1", 3, _scaled(16, width, groups))
    stages = [(_scaled(channels, width, groups), 3) for channels in (16, 32, 64)]
    layers = _residual(stem, stages, "pad")
    return BackboneConfig("resnet20", image_size, layers, (classes,), ("linear",), groups)


def resnet18(width: float, classes: int, image_size: int, groups: int) -> BackboneConfig:
    """Eight residual blocks of 64 to 512 channels; projections where the shape changes."""
    channels = _scaled(64, width, groups)
    stem = ConvConfig("conv1", "bn1", 3, channels, kernel=7, stride=2, padding=3, pool=(3, 2, 1))
    stages = [(_scaled(channels, width, groups), 2) for channels in (64, 128, 256, 512)]
    layers = _residual(stem, stages, "project")
    return BackboneConfig("resnet18", image_size, layers, (classes,), ("fc",), groups)


BACKBONES: dict[str, Callable[[float, int, int, int], BackboneConfig]] = {
    "mcifarnet": mcifarnet,
    "vgg16": vgg16,
    "resnet20": resnet20,
    "resnet18": resnet18,
}
IMAGE_SIZES = {"mcifarnet": 32, "vgg16": 32, "resnet20": 32, "resnet18": 224}


def build(
    name: str, classes: int, *, width: float = 1.0, image_size: int | None = None, groups: int = 4
) -> BackboneConfig:
    """A backbone by name.

    Args:
        width: multiplies every layer's channels, rounded to a multiple of `groups`.
        image_size: side of the input in pixels; by default the published one.

    Raises:
        ValueError: an unknown name, or a shape that does not work out.
    """
    if name not in BACKBONES:
        raise ValueError(f"backbone {name!r} is unknown: choose one of {', '.join(BACKBONES)}")
    if width <= 0:
        raise ValueError(f"backbone width {width} is not positive")
    size = IMAGE_SIZES[name] if image_size is None else image_size
    return BACKBONES[name](width, classes, size, groups)


def _scaled(channels: int, width: float, groups: int) -> int:
    return max(groups, round(channels * width / groups) * groups)


def _residual(
    stem: ConvConfig, stages: list[tuple[int, int]], change: Shortcut
) -> tuple[ConvConfig, ...]:
    layers, before = [stem], stem.out_channels
    for stage, (channels, blocks) in enumerate(stages, start=1):
        for block in range(blocks):
            prefix = f"layer{stage}.{block}"
            first = stage > 1 and block == 0
            conv1 = ConvConfig(
                name=f"{prefix}.conv1",
                norm=f"{prefix}.bn1",
                in_channels=before,
                out_channels=channels,
                stride=2 if first else 1,
            )
            conv2 = replace(
                conv1,
                name=f"{prefix}.conv2",
                norm=f"{prefix}.bn2",
                in_channels=channels,
                stride=1,
                shortcut=change if first else "identity",
                projection=f"{prefix}.downsample" if first and change == "project" else None,
            )
            layers += [conv1, conv2]
            before = channels
    return tuple(layers)
