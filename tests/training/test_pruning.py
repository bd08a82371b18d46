"""Tests of training/pruning.py."""

import sys
from dataclasses import replace

import pytest
import torch
import torch_pruning

from models import backbones
from models.network import Network
from tests.training.support import chain, coloured, lively_network, plain_batches
from training.errors import ConfigError
from training.pruning import (
    CRITERIA,
    by_l1,
    by_library,
    dearest_within,
    from_sequential,
    full_macs,
    is_chain,
    scaled,
    to_sequential,
    whole,
    with_channels,
)

IMAGES = torch.randn(4, 3, 12, 12, generator=torch.Generator().manual_seed(3))


def lively(backbone):
    """A static network whose normalisation differs from channel to channel."""
    network = lively_network(replace(backbone, groups=1))
    with torch.no_grad():
        for conv in network.convs:
            conv.gamma.uniform_(0.5, 1.5)
            conv.beta.uniform_(-0.5, 0.5)
    return network


@pytest.fixture
def mcifarnet():
    return backbones.build("mcifarnet", 3, width=0.25, image_size=12)


@pytest.fixture
def two_linears():
    """A chain that pools, and whose first linear layer reads several pixels a channel."""
    plain = chain(3, 8, 2, 12)
    layers = (replace(plain.layers[0], pool=(2, 2, 0)), *plain.layers[1:])
    return replace(plain, layers=layers, linears=(5, 3), linear_names=("a", "b"), pool_to=2)


def logits(network):
    with torch.no_grad():
        return network.eval()(IMAGES, whole(network))


@pytest.mark.parametrize(
    ("name", "expected"), [("mcifarnet", True), ("vgg16", True), ("resnet20", False)]
)
def test_is_chain_only_without_residual_layers(name, expected):
    assert is_chain(backbones.build(name, 3)) is expected


def test_with_channels_whole_keeps_the_macs(mcifarnet):
    same = with_channels(mcifarnet, [layer.out_channels for layer in mcifarnet.layers])
    assert full_macs(same) == full_macs(mcifarnet)
    assert same.layers == mcifarnet.layers


@pytest.mark.parametrize("fraction", [0.15, 0.25, 0.5, 0.8])
def test_scaled_is_the_largest_share_within_the_fraction(fraction):
    backbone = backbones.build("mcifarnet", 10)
    small = scaled(backbone, fraction)
    limit = fraction * full_macs(backbone)
    assert 0.95 * limit < full_macs(small) <= limit
    shares = [
        s.out_channels / b.out_channels for s, b in zip(small.layers, backbone.layers, strict=True)
    ]
    assert max(shares) - min(shares) < 0.02


def test_scaled_beyond_one_channel_a_layer_raises(mcifarnet):
    with pytest.raises(ConfigError, match=r"--fraction 0.0001 is too small: mcifarnet"):
        scaled(mcifarnet, 0.0001)


def test_dearest_within_the_fraction_is_a_chain_as_wide_as_the_path():
    backbone = chain(3, 8, 2, 12)
    assert backbone.groups == 2
    paths = [(1, 1, 1), (1, 2, 1), (2, 2, 2)]
    macs = [full_macs(dearest_within(backbone, [path], 1)) for path in paths]
    assert macs == sorted(macs)
    assert macs[-1] == full_macs(backbone)
    for fraction, channels in ((macs[1] / macs[2], [4, 8, 4]), (0.99, [4, 8, 4]), (1, [8, 8, 8])):
        small = dearest_within(backbone, paths, fraction)
        assert [layer.out_channels for layer in small.layers] == channels
    least = f"{macs[0] / macs[2]:.3f}"
    with pytest.raises(ConfigError, match=f"the cheapest path of --widths, which has {least}"):
        dearest_within(backbone, paths, 0.01)


def test_by_l1_removes_the_smallest_filters(two_linears):
    """Those that are removed here compute nothing, so that the answers stay."""
    network, kept = lively(two_linears), [1, 3, 4, 6]
    with torch.no_grad():
        for conv in network.convs:
            dead = [c for c in range(8) if c not in kept]
            for part in (conv.gamma, conv.beta):
                part[:, dead] = 0
            conv.weight[dead] *= 1e-3
    small = by_l1(network, with_channels(two_linears, [4] * 3))
    assert [layer.out_channels for layer in small.backbone.layers] == [4, 4, 4]
    torch.testing.assert_close(logits(small), logits(network))


def test_sequential_computes_the_same_and_comes_back(two_linears):
    network = lively(two_linears)
    plain = to_sequential(network)
    torch.testing.assert_close(plain(IMAGES).detach(), logits(network))
    torch.testing.assert_close(logits(from_sequential(network.backbone, plain)), logits(network))


def test_from_sequential_after_pruning_computes_what_the_library_left(two_linears):
    network = lively(two_linears)
    plain = to_sequential(network)
    graph = torch_pruning.DependencyGraph().build_dependency(plain, IMAGES)
    convs = [module for module in plain if isinstance(module, torch.nn.Conv2d)]
    for conv, channels in zip(convs, ([0, 5], [2], [1, 6, 7]), strict=True):
        graph.get_pruning_group(conv, torch_pruning.prune_conv_out_channels, channels).prune()
    small = from_sequential(network.backbone, plain)
    assert [layer.out_channels for layer in small.backbone.layers] == [6, 7, 5]
    torch.testing.assert_close(logits(small), plain.eval()(IMAGES).detach())


@pytest.fixture
def batches():
    return list(plain_batches(coloured(32), 16).epoch(0))


@pytest.mark.parametrize("criterion", CRITERIA)
def test_by_library_layers_keep_their_own_shares(mcifarnet, batches, criterion):
    network = lively(mcifarnet)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    small = by_library(network, 0.3, criterion, batches)
    assert 0.25 < full_macs(small.backbone) / full_macs(mcifarnet) <= 0.3
    shares = [
        s.out_channels / b.out_channels
        for s, b in zip(small.backbone.layers, mcifarnet.layers, strict=True)
    ]
    assert len(set(shares)) > 3
    assert min(shares) > 0.2
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_by_library_taylor_removes_what_no_answer_hangs_on(batches):
    """Channels that the next layer ignores, whatever the size of their own filters."""
    backbone = replace(chain(3, 8, 1, 12), groups=1)
    network = lively(backbone)
    with torch.no_grad():
        network.convs[0].weight[:4] *= 100
        network.convs[1].weight[:, :4] = 0
        network.convs[0].gamma[:, :4] = network.convs[0].beta[:, :4] = 0
    small = by_library(
        network,
        full_macs(with_channels(backbone, [4, 8, 8])) / full_macs(backbone),
        "taylor",
        batches,
    )
    torch.testing.assert_close(
        small.convs[0].weight, network.convs[0].weight[4:].detach(), check_stride=False
    )


def test_by_library_out_of_reach_raises(batches):
    with pytest.raises(ConfigError, match=r"--fraction 0.001 is too small"):
        by_library(Network(replace(chain(3, 4, 2, 12), groups=1)), 0.001, "magnitude", batches)


def test_by_library_without_it_says_what_to_install(mcifarnet, batches, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_pruning", None)
    with pytest.raises(ConfigError, match="pip install torch-pruning"):
        by_library(lively(mcifarnet), 0.3, "taylor", batches)
