from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from models import backbones
from models.compute import (
    FLOPS_PER_MAC,
    agent_macs,
    cap_macs,
    mac_table,
    path_macs,
    price,
    step_price,
)
from models.config import AgentConfig, BackboneConfig, ConvConfig
from tests.models.support import (
    SMALL,
    random_images,
    random_network,
    random_paths,
    small_backbone,
    tiny_backbone,
)

PUBLISHED = [
    ("mcifarnet", 10, 32, 174.3e6),
    ("vgg16", 10, 32, 313.2e6),
    ("vgg16", 1000, 224, 15.47e9),
    ("resnet20", 10, 32, 40.55e6),
    ("resnet18", 1000, 224, 1.814e9),
]


def counted_macs(call):
    """What torch counts while `call` runs."""
    with FlopCounterMode(display=False) as counter:
        call()
    flops = counter.get_total_flops()
    assert flops % FLOPS_PER_MAC == 0
    return flops // FLOPS_PER_MAC


def decide(network, path):
    """The agent's steps of one image, sliced to the channels that the path computes."""
    agent, hidden = network.agent, network.agent.start(1)
    for layer in range(1, network.backbone.n_layers):
        channels = network.backbone.in_channels(layer, path[layer - 1])
        encoder = agent.encoder[str(layer)]
        encoded = F.linear(torch.ones(1, channels), encoder.weight[:, :channels], encoder.bias)
        if agent.config.form == "priced":
            encoded = torch.cat([encoded, torch.zeros(1, 1)], dim=1)
        hidden = agent.cell(encoded, hidden)
        agent.decoder(hidden)


def all_paths(backbone):
    widths = range(1, backbone.groups + 1)
    rest = itertools.product(widths, repeat=backbone.n_layers - 1)
    return np.array([(backbone.groups, *path) for path in rest])


@pytest.mark.parametrize("name", SMALL)
def test_path_macs_of_sliced_network_equal_torchs_count(name):
    network = random_network(small_backbone(name))
    images = random_images(network.backbone, 1)
    for path in random_paths(network.backbone, 5).tolist():
        expected = path_macs(np.array([path]), network.table, agent=False)
        assert counted_macs(lambda p=path: network(images, p)) == expected[0]


def test_path_macs_on_a_pooled_map_equal_torchs_count():
    network = random_network(backbones.build("vgg16", 5, width=0.0625, image_size=64))
    images = random_images(network.backbone, 1)
    for path in random_paths(network.backbone, 3).tolist():
        expected = path_macs(np.array([path]), network.table, agent=False)
        assert counted_macs(lambda p=path: network(images, p)) == expected[0]


@pytest.mark.parametrize("form", ["priced", "paper"])
@pytest.mark.parametrize("name", SMALL)
def test_agent_macs_of_sliced_decisions_equal_torchs_count(name, form):
    network = random_network(small_backbone(name), agent=AgentConfig(form, encoding=6, hidden=10))
    for path in random_paths(network.backbone, 3).tolist():
        expected = agent_macs(np.array([path]), network.table)
        assert counted_macs(lambda p=path: decide(network, p)) == expected[0]


def glance_paths(backbone):
    """All paths that can be taken after a glance: width 1 of layer 1 is final."""
    paths = all_paths(backbone)
    return paths[(paths[:, 1] > 1) | (paths[:, 1:] == 1).all(axis=1)]


@pytest.mark.parametrize("name", SMALL)
def test_path_macs_after_a_glance_equal_torchs_count(name):
    agent = AgentConfig(encoding=6, hidden=10, glance=True)
    network = random_network(small_backbone(name), agent=agent)
    backbone, images = network.backbone, random_images(network.backbone, 1)
    k, n_layers = backbone.groups, backbone.n_layers
    narrowest = [k] + [1] * (n_layers - 1)
    stem = int(network.table.layers[0, -1, -1])
    features = network.agent.encoder["1"].in_features

    def first_decision():
        encoder, hidden = network.agent.encoder["1"], network.agent.start(1)
        encoded = torch.cat([encoder(torch.ones(1, features)), torch.zeros(1, 1)], dim=1)
        network.agent.decoder(network.agent.cell(encoded, hidden))

    glance = counted_macs(lambda: network(images, narrowest)) + counted_macs(first_decision)
    (stopped,) = path_macs(np.array([narrowest]), network.table, agent=True)
    assert stopped == glance
    for path in random_paths(backbone, 4).tolist():
        path[1] = max(path[1], 2)
        later = range(2, n_layers)
        decisions = sum(int(network.table.agent[step, path[step - 1] - 1]) for step in later)
        second = counted_macs(lambda p=path: network(images, p)) - stem
        (macs,) = path_macs(np.array([path]), network.table, agent=True)
        assert macs == glance + second + decisions
        assert agent_macs(np.array([path]), network.table)[0] == macs - second - stem


def test_after_and_least_with_a_glance_equal_the_cheapest_of_all_paths():
    backbone = tiny_backbone()
    table = mac_table(backbone, AgentConfig(encoding=4, hidden=5, glance=True))
    paths = glance_paths(backbone)
    totals = path_macs(paths, table, agent=True)
    assert table.least == totals.min() == totals[(paths[:, 1] == 1).argmax()]
    for width in range(1, backbone.groups + 1):
        cheapest = totals[paths[:, 1] == width].min()
        assert table.start + table.after()[1, -1, width - 1] == cheapest


def test_mac_table_with_a_glance_where_nothing_can_be_pruned_is_refused():
    single = BackboneConfig("single", 8, (ConvConfig("a", "an", 3, 4),), (3,), ("f",))
    assert mac_table(single, AgentConfig()).least == mac_table(single, AgentConfig()).full
    with pytest.raises(ValueError, match="no narrower path"):
        mac_table(single, AgentConfig(glance=True))


def test_price_with_a_glance_is_nothing_for_its_answer():
    table = mac_table(tiny_backbone(), AgentConfig(glance=True))
    assert (price(table, "priced")[1, :, 0] == 0).all()
    assert (price(table, "priced")[1, :, 1:] > 0).all()
    plain = price(mac_table(tiny_backbone(), AgentConfig()), "priced")
    assert (price(table, "priced")[1, :, 1:] == plain[1, :, 1:]).all()


@pytest.mark.parametrize(("name", "classes", "size", "macs"), PUBLISHED)
def test_mac_table_of_published_backbone_gives_published_total(name, classes, size, macs):
    backbone = backbones.build(name, classes, image_size=size)
    assert mac_table(backbone, AgentConfig()).full == pytest.approx(macs, rel=5e-4)


def test_full_is_the_widest_path_without_agent():
    table = mac_table(tiny_backbone(), AgentConfig())
    assert table.full == path_macs(all_paths(tiny_backbone())[-1:], table, agent=False)[0]


def test_least_is_the_cheapest_of_all_paths_with_agent():
    table = mac_table(tiny_backbone(), AgentConfig(encoding=4, hidden=5))
    assert table.least == path_macs(all_paths(tiny_backbone()), table, agent=True).min()


def test_after_equals_the_cheapest_of_all_paths_through_each_choice():
    backbone = tiny_backbone()
    table = mac_table(backbone, AgentConfig(encoding=4, hidden=5))
    paths, after = all_paths(backbone), table.after()
    totals = path_macs(paths, table, agent=True)
    rest = totals.copy()
    for layer in range(backbone.n_layers):
        # What is left once the layers before `layer` are paid.
        before = paths[:, max(layer - 1, 0)] - 1
        for i, o in itertools.product(range(backbone.groups), repeat=2):
            through = (before == i) & (paths[:, layer] - 1 == o)
            if through.any():
                assert after[layer, i, o] == rest[through].min()
                assert table.rest()[layer, i] <= after[layer, i, o]
        rest = rest - table.steps()[layer, before, paths[:, layer] - 1]


def test_rest_at_the_end_is_the_head():
    table = mac_table(tiny_backbone(), AgentConfig())
    assert table.rest()[-1].tolist() == table.head.tolist()


def test_rest_equals_the_least_of_after():
    table = mac_table(small_backbone("mcifarnet"), AgentConfig())
    assert (table.rest()[:-1] == table.after().min(axis=2)).all()


@pytest.mark.parametrize(
    ("cap", "full", "macs"), [(1.0, 1001, 1001), (0.5, 1001, 500), (0.001, 999, 0)]
)
def test_cap_macs_of_a_share_is_rounded_down(cap, full, macs):
    assert cap_macs(cap, full) == macs


def test_cap_macs_of_many_shares_keeps_their_order():
    assert cap_macs(np.array([0.3, 1.0, 0.1]), 10).tolist() == [3, 10, 1]


def test_step_price_of_macs_is_the_share_of_the_full_network():
    table = mac_table(tiny_backbone(), AgentConfig())
    assert step_price(table, "priced")[2, 0, 1] == pytest.approx(table.layers[2, 0, 1] / table.full)


def test_step_price_of_paper_is_the_number_of_groups():
    table = mac_table(tiny_backbone(), AgentConfig())
    prices = step_price(table, "paper")
    assert prices.shape == table.layers.shape
    assert (prices == [1, 2, 3]).all()


@pytest.mark.parametrize("form", ["priced", "paper"])
def test_price_equals_the_cheapest_rest_of_all_paths(form):
    backbone = tiny_backbone()
    table = mac_table(backbone, AgentConfig())
    steps, prices = step_price(table, form), price(table, form)
    layers = range(backbone.n_layers)
    for layer, i, o in itertools.product(layers, range(3), range(3)):
        rest = itertools.product(range(3), repeat=backbone.n_layers - layer - 1)
        cheapest = min(
            math.fsum(
                steps[layer + n, before, after]
                for n, (before, after) in enumerate(itertools.pairwise((i, o, *path)))
            )
            for path in rest
        )
        assert prices[layer, i, o] == pytest.approx(cheapest, rel=1e-6)


def test_price_of_wider_choice_is_higher():
    prices = price(mac_table(small_backbone("resnet20"), AgentConfig()), "priced")
    assert (np.diff(prices, axis=2) > 0).all()
