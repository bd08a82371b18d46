from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from models.config import BackboneConfig, to_dict
from tests.models.support import SMALL, random_images, random_network, small_backbone, tiny_backbone

BACKBONES = ["tiny", *SMALL]


def make_backbone(name):
    return tiny_backbone() if name == "tiny" else small_backbone(name)


@pytest.mark.parametrize("name", BACKBONES)
def test_backbone_config_through_json_is_the_same(name):
    backbone = make_backbone(name)
    assert BackboneConfig.from_dict(json.loads(json.dumps(to_dict(backbone)))) == backbone


@pytest.mark.parametrize("name", BACKBONES)
def test_sizes_are_those_that_torch_computes(name):
    network, sizes = random_network(make_backbone(name)), []
    for conv in network.convs:
        conv.register_forward_hook(lambda _conv, _inputs, y: sizes.append(y.shape[-1]))
    images = random_images(network.backbone, 1)
    network(images, [network.backbone.groups] * network.backbone.n_layers)
    last = network.backbone.layers[-1]
    end = torch.zeros(1, 1, sizes[-1], sizes[-1])
    end = end if last.pool is None else F.max_pool2d(end, *last.pool)
    assert network.backbone.sizes() == [*sizes, end.shape[-1]]


def test_in_channels_of_a_layer_that_reads_the_stream_are_all_channels():
    backbone = tiny_backbone()
    assert [backbone.in_channels(1, width) for width in (1, 2, 3)] == [6, 6, 6]
    assert [backbone.in_channels(3, width) for width in (1, 2, 3)] == [9, 9, 9]


def test_in_channels_of_other_layers_follow_the_width_before():
    backbone = tiny_backbone()
    assert [backbone.in_channels(2, width) for width in (1, 2, 3)] == [3, 6, 9]
    assert [backbone.in_channels(4, width) for width in (1, 2, 3)] == [2, 4, 6]


def test_in_channels_of_the_first_layer_are_the_images():
    assert tiny_backbone().in_channels(0, 1) == 3


def test_in_channels_of_the_end_follow_a_chains_last_width_but_not_a_streams():
    assert [tiny_backbone().in_channels(5, width) for width in (1, 2, 3)] == [4, 8, 12]
    resnet = small_backbone("resnet20")
    assert {resnet.in_channels(resnet.n_layers, width) for width in range(1, 5)} == {16}


def test_out_channels_are_a_prefix_of_the_groups():
    assert [tiny_backbone().out_channels(1, width) for width in (1, 2, 3)] == [3, 6, 9]


def test_backbone_config_of_groups_that_do_not_divide_raises():
    with pytest.raises(ValueError, match="a has 6 channels, which 4 groups do not divide"):
        replace(tiny_backbone(), groups=4)


def test_backbone_config_of_unnamed_linear_layer_raises():
    with pytest.raises(ValueError, match="linears and linear_names differ"):
        replace(tiny_backbone(), linears=(3,))


@pytest.mark.parametrize("image_size", [0, 1])
def test_backbone_config_of_images_too_small_raises(image_size):
    with pytest.raises(ValueError, match=f"image_size {image_size} leaves no pixel"):
        replace(tiny_backbone(), image_size=image_size)
