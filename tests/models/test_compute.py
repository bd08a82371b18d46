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
    cap_macs,
    look_price,
    mac_table,
    path_macs,
    price,
    step_price,
)
from models.config import AgentConfig, BackboneConfig, ConvConfig, decisions
from tests.models.support import (
    ALL,
    agent_config,
    all_paths,
    make_backbone,
    random_images,
    random_network,
    random_paths,
    tiny_backbone,
)

PUBLISHED = [
    ("mcifarnet", 10, 32, 174.3e6),
    ("vgg16", 10, 32, 313.2e6),
    ("vgg16", 1000, 224, 15.47e9),
    ("resnet20", 10, 32, 40.55e6),
    ("resnet18", 1000, 224, 1.814e9),
]
# Few enough paths to try them all; the last layer is a decision in one and tied in the other.
FEW = ["tiny", "stream"]
LAYERWISE = ["priced", "paper"]


def counted_macs(call):
    """What torch counts while `call` runs."""
    with FlopCounterMode(display=False) as counter:
        call()
    flops = counter.get_total_flops()
    assert flops % FLOPS_PER_MAC == 0
    return flops // FLOPS_PER_MAC


def written_out(backbone, path):
    """MACs of a path's convolutions and linear layers, from their published shapes."""
    channels = [
        layer.out_channels * w // backbone.groups
        for layer, w in zip(backbone.layers, path, strict=True)
    ]
    reads, total, size = [3, *channels], 0, backbone.image_size
    for index, layer in enumerate(backbone.layers):
        size = (size + 2 * layer.padding - layer.kernel) // layer.stride + 1
        total += reads[index] * channels[index] * layer.kernel**2 * size**2
        if layer.shortcut == "project":
            total += reads[index - 1] * channels[index] * size**2
        if layer.pool:
            kernel, stride, padding = layer.pool
            size = (size + 2 * padding - kernel) // stride + 1
    features = channels[-1] * backbone.pool_to**2
    return total + sum(map(math.prod, itertools.pairwise((features, *backbone.linears))))


def decide(network, path):
    """The agent's steps of one image, sliced to the channels that the path computes."""
    agent, hidden = network.agent, network.agent.start(1)
    for layer in decisions(network.backbone, agent.config):
        channels = network.backbone.in_channels(layer, path[layer - 1])
        encoder = agent.encoder[str(layer)]
        encoded = F.linear(torch.ones(1, channels), encoder.weight[:, :channels], encoder.bias)
        if agent.config.form == "priced":
            encoded = torch.cat([encoded, torch.zeros(1, 1)], dim=1)
        hidden = agent.cell(encoded, hidden)
        agent.decoder(hidden)


def make_table(name, form="priced", **sizes):
    backbone = make_backbone(name)
    return mac_table(backbone, agent_config(form, backbone, **sizes))


def decided(table, path):
    """Where in the table's arrays each decision along a path stands."""
    widths = [table.groups - 1] * 2 + [width - 1 for width in path]
    return [(layer, *widths[layer : layer + 3]) for layer in table.decisions]


@pytest.mark.parametrize("name", ALL)
def test_path_macs_of_sliced_network_equal_torchs_count(name):
    network = random_network(make_backbone(name))
    images = random_images(network.backbone, 1)
    for path in random_paths(network.backbone, 5).tolist():
        expected = path_macs(np.array([path]), network.table, agent=False)
        assert counted_macs(lambda p=path: network(images, p)) == expected[0]


@pytest.mark.parametrize("name", ALL)
def test_path_macs_equal_the_sum_over_published_shapes(name):
    backbone, table = make_backbone(name), make_table(name)
    paths = random_paths(backbone, 30).numpy()
    expected = [written_out(backbone, path) for path in paths.tolist()]
    assert path_macs(paths, table, agent=False).tolist() == expected
    assert len(set(expected)) > 20


def test_path_macs_on_a_pooled_map_equal_torchs_count():
    network = random_network(backbones.build("vgg16", 5, width=0.0625, image_size=64))
    images = random_images(network.backbone, 1)
    for path in random_paths(network.backbone, 3).tolist():
        expected = path_macs(np.array([path]), network.table, agent=False)
        assert counted_macs(lambda p=path: network(images, p)) == expected[0]


@pytest.mark.parametrize("form", LAYERWISE)
@pytest.mark.parametrize("name", ALL)
def test_agent_macs_of_sliced_decisions_equal_torchs_count(name, form):
    backbone = make_backbone(name)
    network = random_network(backbone, agent=AgentConfig(form, encoding=6, hidden=10))
    for path in random_paths(backbone, 3, whole=True).tolist():
        with_agent, without = (
            path_macs(np.array([path]), network.table, agent=agent)[0] for agent in (True, False)
        )
        assert counted_macs(lambda p=path: decide(network, p)) == with_agent - without


@pytest.mark.parametrize("looks", [0, 1, 2])
@pytest.mark.parametrize("name", ALL)
def test_looks_are_torchs_count_of_each_path_and_of_the_decision_after_it(name, looks):
    backbone = make_backbone(name)
    agent = agent_config("paths", backbone, hidden=10, looks=looks)
    network = random_network(backbone, agent=agent)
    images, table = random_images(backbone, 1), network.table

    def look(number):
        seen = network.agent.seen(*network.look(images, number))
        if number < (looks or 4):
            network.agent(number, seen, torch.zeros(1))

    counted = [counted_macs(lambda n=n: look(n)) for n in range(len(agent.paths))]
    assert list(table.looks) == counted
    assert table.start == table.least == counted[0]
    assert counted[-1] == table.full == written_out(backbone, agent.paths[-1])


@pytest.mark.parametrize("name", ALL)
def test_path_macs_of_an_agent_that_chooses_whole_paths_are_the_paths_own(name):
    table, paths = make_table(name, "paths"), random_paths(make_backbone(name), 9).numpy()
    assert (path_macs(paths, table, agent=True) == path_macs(paths, table, agent=False)).all()


@pytest.mark.parametrize(("name", "classes", "size", "macs"), PUBLISHED)
def test_mac_table_of_published_backbone_gives_published_total(name, classes, size, macs):
    backbone = backbones.build(name, classes, image_size=size)
    assert mac_table(backbone, AgentConfig()).full == pytest.approx(macs, rel=5e-4)


def test_mac_table_of_paths_of_another_backbone_raises():
    agent = agent_config("paths", make_backbone("stream"))
    with pytest.raises(ValueError, match="is none of backbone tiny"):
        mac_table(tiny_backbone(), agent)


@pytest.mark.parametrize("middle", [((2,) * 6, (1, 2, 1, 1, 1, 1)), ((1, 3, 1, 2, 1, 2),) * 2])
def test_mac_table_of_paths_whose_macs_do_not_rise_raises(middle):
    agent = AgentConfig("paths", paths=((1,) * 6, *middle, (3,) * 6))
    with pytest.raises(ValueError, match="paths are not sorted by rising MACs"):
        mac_table(tiny_backbone(), agent)


@pytest.mark.parametrize("form", ["paths", *LAYERWISE])
@pytest.mark.parametrize("name", FEW)
def test_full_is_the_widest_path_without_agent(name, form):
    table, widest = make_table(name, form), all_paths(make_backbone(name))[-1:].numpy()
    assert table.full == path_macs(widest, table, agent=False)[0]


@pytest.mark.parametrize("form", LAYERWISE)
@pytest.mark.parametrize("name", FEW)
def test_least_is_the_cheapest_of_all_paths_with_agent(name, form):
    table, paths = make_table(name, form), all_paths(make_backbone(name), whole=True).numpy()
    assert table.least == path_macs(paths, table, agent=True).min()


def test_least_where_nothing_can_be_pruned_is_the_whole():
    single = BackboneConfig("single", 8, (ConvConfig("a", "an", 3, 4),), (3,), ("f",))
    table = mac_table(single, AgentConfig())
    assert table.least == table.start == table.full


@pytest.mark.parametrize("form", LAYERWISE)
@pytest.mark.parametrize("name", ALL)
def test_steps_along_any_path_add_up_to_its_macs(name, form):
    table, paths = make_table(name, form), random_paths(make_backbone(name), 20, whole=True).numpy()
    steps = table.steps()
    found = [table.start + sum(steps[here] for here in decided(table, path)) for path in paths]
    assert found == path_macs(paths, table, agent=True).tolist()


@pytest.mark.parametrize("name", FEW)
def test_after_equals_the_cheapest_of_all_paths_through_each_decision(name):
    table = make_table(name, encoding=4, hidden=5)
    paths, steps, after = all_paths(make_backbone(name), whole=True).numpy(), table.steps(), {}
    totals = path_macs(paths, table, agent=True)
    for path, rest in zip(paths, totals - table.start, strict=True):
        for here in decided(table, path):
            after[here] = min(rest, after.get(here, rest))
            rest -= steps[here]
    assert {here: table.after()[here] for here in after} == after


@pytest.mark.parametrize("form", LAYERWISE)
@pytest.mark.parametrize("name", ALL)
def test_after_lets_every_cap_be_kept_whatever_was_chosen_within_it(name, form):
    table, rng = make_table(name, form), np.random.default_rng(0)
    backbone, steps, after = make_backbone(name), table.steps(), table.after()
    for limit in np.linspace(table.least, table.full, 20).astype(int):
        left, path = limit - table.start, []
        for layer in range(backbone.n_layers):
            whole_before = [table.groups] * 2 + path
            if layer in table.decisions:
                here = layer, whole_before[-2] - 1, whole_before[-1] - 1
                allowed = np.flatnonzero(after[here] <= left)
                assert len(allowed)
                path.append(int(rng.choice(allowed)) + 1)
                left -= steps[*here, path[-1] - 1]
            else:
                path.append(whole_before[-2])
        assert path_macs(np.array([path]), table, agent=True) == limit - left <= limit


@pytest.mark.parametrize(
    ("cap", "full", "macs"), [(1.0, 1001, 1001), (0.5, 1001, 500), (0.001, 999, 0)]
)
def test_cap_macs_of_a_share_is_rounded_down(cap, full, macs):
    assert cap_macs(cap, full) == macs


def test_cap_macs_of_many_shares_keeps_their_order():
    assert cap_macs(np.array([0.3, 1.0, 0.1]), 10).tolist() == [3, 10, 1]


def test_cap_macs_without_a_cap_are_more_than_any_images_and_no_overflow():
    full = 15 * 10**12  # a thousand times a VGG-16's
    none, large, whole = cap_macs(np.array([math.inf, 1e300, 1.0]), full).tolist()
    assert none == large > 100 * whole == 100 * full


@pytest.mark.parametrize("name", ALL)
def test_step_price_of_macs_along_a_path_adds_up_to_the_share_of_the_backbones(name):
    table, paths = make_table(name), random_paths(make_backbone(name), 10, whole=True).numpy()
    prices = step_price(table, "priced")
    found = [sum(prices[here] for here in decided(table, path)) for path in paths]
    shares = (path_macs(paths, table, agent=False) - table.start) / table.full
    np.testing.assert_allclose(found, shares, rtol=1e-5)


@pytest.mark.parametrize("name", FEW)
def test_step_price_of_paper_is_the_number_of_groups_where_a_decision_is_made(name):
    table = make_table(name, "paper")
    for layer, prices in enumerate(step_price(table, "paper")):
        assert (prices == ([1, 2, 3] if layer in table.decisions else 0)).all()


@pytest.mark.parametrize("form", LAYERWISE)
@pytest.mark.parametrize("name", FEW)
def test_price_equals_the_cheapest_rest_of_all_paths(name, form):
    table, cheapest = make_table(name, form), {}
    steps, prices = step_price(table, form), price(table, form)
    for path in all_paths(make_backbone(name), whole=True).tolist():
        rest = 0.0
        for here in reversed(decided(table, path)):
            rest += float(steps[here])
            cheapest[here] = min(rest, cheapest.get(here, rest))
    for here, expected in cheapest.items():
        assert prices[here] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("form", LAYERWISE)
@pytest.mark.parametrize("name", ALL)
def test_price_of_wider_choice_is_higher(name, form):
    table = make_table(name, form)
    assert (np.diff(price(table, form)[list(table.decisions)], axis=3) > 0).all()


@pytest.mark.parametrize("name", ALL)
def test_look_price_is_the_share_that_a_path_and_the_decision_after_it_take(name):
    backbone, table = make_backbone(name), make_table(name, "paths", hidden=10)
    paths = agent_config("paths", backbone).paths
    macs = np.array([written_out(backbone, path) for path in paths])
    for look, path in enumerate(paths[:-1]):
        classes = backbone.classes
        seen = 2 * (classes + min(classes, 5)) + backbone.layers[-1].out_channels * path[-1] // (
            backbone.groups
        )
        macs[look] += (seen + 1) * 10 + 10 * 10 + 10 * (4 - look)
    np.testing.assert_allclose(look_price(table), macs / table.full, rtol=1e-6)
    assert look_price(table)[-1] == 1
