from __future__ import annotations

import pytest

from models import backbones
from models.backbones import BACKBONES, IMAGE_SIZES, build

CHANNELS = {
    "mcifarnet": [64, 64, 128, 128, 128, 192, 192, 192],
    "vgg16": [64] * 2 + [128] * 2 + [256] * 3 + [512] * 6,
    "resnet20": [16] * 7 + [32] * 6 + [64] * 6,
    "resnet18": [64] * 5 + [128] * 4 + [256] * 4 + [512] * 4,
}
# Side of each map, before its pooling, and of the last.
SIZES = {
    "mcifarnet": [30, 30, 15, 15, 15, 8, 8, 8, 8],
    "vgg16": [32, 32, 16, 16, 8, 8, 8, 4, 4, 4, 2, 2, 2, 1],
    "resnet20": [32] * 7 + [16] * 6 + [8] * 7,
    "resnet18": [112] + [56] * 4 + [28] * 4 + [14] * 4 + [7] * 5,
}


@pytest.mark.parametrize("name", BACKBONES)
def test_build_by_default_has_the_published_channels(name):
    assert [layer.out_channels for layer in build(name, 10).layers] == CHANNELS[name]


@pytest.mark.parametrize("name", BACKBONES)
def test_build_by_default_has_the_published_map_sizes(name):
    backbone = build(name, 10)
    assert backbone.image_size == IMAGE_SIZES[name]
    assert backbone.sizes() == SIZES[name]


@pytest.mark.parametrize("name", BACKBONES)
def test_build_connects_each_layer_to_the_one_before(name):
    layers = build(name, 10, width=0.5).layers
    assert [x.in_channels for x in layers] == [3, *(x.out_channels for x in layers[:-1])]


@pytest.mark.parametrize("name", BACKBONES)
def test_build_of_classes_ends_in_that_many(name):
    backbone = build(name, 7)
    assert (backbone.name, backbone.classes) == (name, 7)


@pytest.mark.parametrize(("size", "linears", "pool_to"), [(63, 1, 1), (64, 3, 7), (224, 3, 7)])
def test_vgg16_of_large_images_has_three_linear_layers(size, linears, pool_to):
    backbone = build("vgg16", 10, image_size=size)
    assert (len(backbone.linears), backbone.pool_to) == (linears, pool_to)


@pytest.mark.parametrize(("name", "change"), [("resnet20", "pad"), ("resnet18", "project")])
def test_resnet_second_convolutions_add_what_first_ones_read(name, change):
    layers = build(name, 10).layers
    assert layers[0].shortcut is None
    for first, second in zip(layers[1::2], layers[2::2], strict=True):
        changed = first.in_channels != first.out_channels
        assert (first.shortcut, first.stride) == (None, 1 + changed)
        assert second.stride == 1
        assert second.shortcut == (change if changed else "identity")
        assert (second.projection is not None) == (changed and change == "project")


@pytest.mark.parametrize("name", ["mcifarnet", "vgg16"])
def test_build_of_a_chain_adds_nothing(name):
    assert all(layer.shortcut is None for layer in build(name, 10).layers)


@pytest.mark.parametrize(
    ("width", "groups", "channels"), [(0.5, 4, 32), (0.3, 4, 20), (0.01, 4, 4), (1.0, 5, 65)]
)
def test_build_of_a_width_rounds_channels_to_groups(width, groups, channels):
    backbone = build("mcifarnet", 10, width=width, groups=groups)
    assert (backbone.layers[0].out_channels, backbone.groups) == (channels, groups)


def test_build_of_an_unknown_name_raises_and_names_the_choices():
    with pytest.raises(ValueError, match="'alexnet' is unknown: choose one of mcifarnet, vgg16"):
        build("alexnet", 10)


@pytest.mark.parametrize("width", [0, -1.0])
def test_build_of_a_width_that_is_not_positive_raises(width):
    with pytest.raises(ValueError, match=f"backbone width {width} is not positive"):
        build("mcifarnet", 10, width=width)


def test_build_of_images_too_small_raises():
    with pytest.raises(ValueError, match="image_size 16 leaves no pixel"):
        backbones.build("vgg16", 10, image_size=16)
