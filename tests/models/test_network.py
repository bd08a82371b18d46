from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models.compute import FLOPS_PER_MAC, cap_macs, path_macs
from models.config import AgentConfig
from models.network import Greedy
from models.weights import folded
from tests.models.support import (
    SMALL,
    random_images,
    random_network,
    random_paths,
    small_backbone,
    tiny_backbone,
)

N = 12
# Of the way from the lowest cap to 1.
SHARES = np.resize([0.01, 0.1, 0.3, 0.6, 1.0], N)


def make_backbone(name):
    return tiny_backbone() if name == "tiny" else small_backbone(name)


ALL = ["tiny", *SMALL]


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_along_mixed_paths_equals_each_image_alone_on_its_path(name, fold):
    network = random_network(make_backbone(name))
    network = folded(network) if fold else network
    images, paths = random_images(network.backbone, N), random_paths(network.backbone, N)
    found = network.along(images, paths)
    assert len(found.unique(dim=0)) == N
    for image, path, logits in zip(images, paths, found, strict=True):
        expected = network(image[None], path.tolist())[0]
        torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ALL)
def test_folded_network_equals_itself_unfolded(name):
    network = random_network(make_backbone(name))
    images = random_images(network.backbone, N)
    for path in random_paths(network.backbone, 4).tolist():
        expected, found = network(images, path), folded(network)(images, path)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ALL)
def test_forward_of_narrower_layer_changes_the_answer(name):
    network = random_network(make_backbone(name))
    images, k = random_images(network.backbone, 2), network.backbone.groups
    full = [k] * network.backbone.n_layers
    expected = network(images, full)
    for layer in range(1, network.backbone.n_layers):
        path = [*full[:layer], k - 1, *full[layer + 1 :]]
        assert not torch.allclose(network(images, path), expected, atol=1e-3)


@pytest.mark.parametrize("name", ALL)
def test_along_mixed_paths_computes_nothing_for_a_channel_that_is_off(name):
    network = random_network(make_backbone(name))
    images, paths = random_images(network.backbone, N), random_paths(network.backbone, N)
    # The end runs on whole maps: a linear layer's few MACs are not worth a batch of their own.
    macs = path_macs(paths.numpy(), network.table, agent=False)
    ends = network.table.head[-1] - network.table.head[paths[:, -1].numpy() - 1]
    with FlopCounterMode(display=False) as counter:
        network.along(images, paths)
    assert counter.get_total_flops() == FLOPS_PER_MAC * (macs + ends).sum()


def test_run_gives_the_chooser_pooled_inputs_and_the_width_before():
    network = random_network(tiny_backbone())
    images, paths = random_images(network.backbone, N), random_paths(network.backbone, N)
    seen = []

    def choose(layer, pooled, before):
        seen.append((layer, before.tolist()))
        assert pooled.shape == (N, network.backbone.layers[layer].in_channels)
        return paths[:, layer]

    _, trace = network.run(images, choose)
    assert seen == [(layer, paths[:, layer - 1].tolist()) for layer in (1, 2, 3, 4)]
    assert torch.equal(trace.widths, paths)
    # Layer 2 reads what layer 1 computed, and nothing else.
    for pooled, width in zip(trace.pooled[1], paths[:, 1].tolist(), strict=True):
        assert not pooled[3 * width :].any()
        assert pooled[: 3 * width].any()


@pytest.mark.parametrize("width", [1, 2, 3])
def test_run_pools_the_mean_of_what_enters_each_layer(width):
    network, entered = random_network(tiny_backbone()), []
    for conv in network.convs[1:]:
        conv.register_forward_pre_hook(lambda _conv, inputs: entered.append(inputs[0].mean((2, 3))))
    images, paths = random_images(network.backbone, N), torch.full((N,), width)
    _, trace = network.run(images, lambda _layer, _pooled, _before: paths)
    for pooled, expected in zip(trace.pooled, entered, strict=True):
        torch.testing.assert_close(pooled[:, : expected.shape[1]], expected)
        assert not pooled[:, expected.shape[1] :].any()


@pytest.mark.parametrize("penalty", [0.0, 0.3, 1e6])
@pytest.mark.parametrize("name", ALL)
def test_by_policy_never_prunes_the_first_layer(name, penalty):
    network = random_network(make_backbone(name))
    images = random_images(network.backbone, N)
    _, trace = network.by_policy(images, torch.full((N,), penalty), torch.ones(N))
    assert (trace.widths[:, 0] == network.backbone.groups).all()
    assert penalty < 1e6 or (trace.widths[:, 1:] == 1).all()


@pytest.mark.parametrize("name", ALL)
def test_by_policy_answers_as_along_the_paths_that_it_chose(name):
    network = random_network(make_backbone(name))
    images = random_images(network.backbone, N)
    logits, trace = network.by_policy(images, torch.full((N,), 0.2), torch.ones(N))
    assert len(trace.widths.unique(dim=0)) > 1
    torch.testing.assert_close(logits, network.along(images, trace.widths))


def glancing_network(name, seed=0):
    """A network whose agent goes with its glance at some images, at a penalty of 0.2."""
    agent = AgentConfig(encoding=8, hidden=8, glance=True)
    network = random_network(make_backbone(name), seed, agent)
    images, penalty = random_images(network.backbone, 64, 9), torch.full((64,), 0.2)
    firsts = []

    def choose(layer, state, before):
        if layer == 1:
            firsts.append(network.agent(1, state, before, penalty, network.agent.start(64))[0])
        return torch.ones_like(before)

    network.run(images, choose, glance=True)
    best = firsts[0][:, 1:].amax(dim=1) - firsts[0][:, 0]
    network.agent.decoder.bias[0] += best.median()
    return network


@pytest.mark.parametrize("name", ALL)
def test_by_policy_with_a_glance_answers_as_along_the_paths_that_it_chose(name):
    network = glancing_network(name)
    images = random_images(network.backbone, N)
    logits, trace = network.by_policy(images, torch.full((N,), 0.2), torch.full((N,), 2.0))
    stopped = trace.widths[:, 1] == 1
    assert 0 < stopped.sum() < N
    assert (trace.widths[stopped][:, 1:] == 1).all()
    torch.testing.assert_close(logits, network.along(images, trace.widths), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ALL)
def test_by_policy_with_a_glance_spends_what_path_macs_says(name):
    """Convolutions only: the reference computes agent and end on whole maps."""
    network = glancing_network(name)
    images = random_images(network.backbone, N)
    with FlopCounterMode(display=False) as counter:
        _, trace = network.by_policy(images, torch.full((N,), 0.2), torch.full((N,), 2.0))
    counted = counter.get_flop_counts()["Global"][torch.ops.aten.convolution] // FLOPS_PER_MAC
    table, k = network.table, network.backbone.groups
    glance = table.glance - table.head[0]
    expected = 0
    for path in trace.widths.numpy():
        expected += table.layers[0, -1, -1] + glance
        if path[1] > 1:
            before = np.concatenate([[k], path[:-1]])
            layers = range(1, len(path))
            expected += sum(table.layers[i, before[i] - 1, path[i] - 1] for i in layers)
    assert counted == expected


def test_run_shows_the_first_decision_what_the_glance_saw():
    network = glancing_network("mcifarnet")
    images, seen = random_images(network.backbone, N), {}

    def choose(layer, state, before):
        seen[layer] = state
        return torch.full_like(before, 1 if layer == 1 else 3)

    logits, trace = network.run(images, choose, glance=True)
    narrowest = [network.backbone.groups] + [1] * (network.backbone.n_layers - 1)
    expected = network(images, narrowest)
    torch.testing.assert_close(logits, expected)
    assert (trace.widths[:, 1:] == 1).all()
    chances = expected.softmax(dim=1)
    torch.testing.assert_close(seen[1][:, :5], chances)
    torch.testing.assert_close(seen[1][:, 5:10], chances.sort(descending=True).values)
    assert seen[1].shape[1] == network.agent.encoder["1"].in_features


@pytest.mark.parametrize("name", ALL)
def test_by_policy_with_a_glance_never_exceeds_a_cap(name):
    network = glancing_network(name)
    images, table = random_images(network.backbone, N), network.table
    caps = table.least / table.full * (1 - SHARES) + SHARES
    _, trace = network.by_policy(images, torch.full((N,), 0.01), torch.from_numpy(caps))
    macs = path_macs(trace.widths.numpy(), table, agent=True)
    assert (macs <= cap_macs(caps, table.full)).all()
    assert len(trace.widths.unique(dim=0)) > 1


@pytest.mark.parametrize("glance", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_by_policy_of_a_batch_chooses_as_for_each_image_alone(name, glance):
    network = glancing_network(name) if glance else random_network(make_backbone(name))
    images = random_images(network.backbone, N)
    penalty, cap = torch.linspace(0.01, 0.5, N), torch.linspace(0.5, 1, N).double()
    logits, trace = network.by_policy(images, penalty, cap)
    for n in range(N):
        alone, path = network.by_policy(images[n : n + 1], penalty[n : n + 1], cap[n : n + 1])
        assert path.widths[0].tolist() == trace.widths[n].tolist()
        torch.testing.assert_close(alone[0], logits[n], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("form", ["priced", "paper"])
@pytest.mark.parametrize("name", ALL)
def test_by_policy_under_a_cap_never_exceeds_it(name, form):
    for seed in range(3):
        network = random_network(make_backbone(name), seed, AgentConfig(form, encoding=4, hidden=4))
        # A wish for all groups, or few caps would bind.
        network.agent.decoder.bias += torch.arange(network.backbone.groups)
        images, table = random_images(network.backbone, N, seed), network.table
        caps = table.least / table.full * (1 - SHARES) + SHARES
        _, trace = network.by_policy(images, torch.full((N,), 0.01), torch.from_numpy(caps))
        macs = path_macs(trace.widths.numpy(), table, agent=True)
        assert (macs <= cap_macs(caps, table.full)).all()


def test_by_policy_under_the_lowest_cap_takes_the_cheapest_path():
    network = random_network(tiny_backbone())
    table = network.table
    cap = torch.full((N,), (table.least + 0.5) / table.full).double()
    _, trace = network.by_policy(random_images(network.backbone, N), torch.zeros(N), cap)
    assert (path_macs(trace.widths.numpy(), table, agent=True) == table.least).all()


@pytest.mark.parametrize("rank", [0, 9, 26, 40, 66, 80])
def test_greedy_that_wants_all_groups_takes_all_that_the_cap_leaves_room_for(rank):
    network = random_network(tiny_backbone(), agent=AgentConfig(encoding=2, hidden=2))
    network.agent.decoder.weight.zero_()
    network.agent.decoder.bias.copy_(torch.tensor([0.0, 1.0, 2.0]))
    paths = np.array([(3, *path) for path in itertools.product((1, 2, 3), repeat=4)])
    macs = path_macs(paths, network.table, agent=True)
    # A cap that one of the paths just keeps.
    limit = np.sort(macs)[rank]
    cap = torch.tensor([(limit + 0.5) / network.table.full], dtype=torch.float64)
    _, trace = network.by_policy(random_images(network.backbone, 1), torch.zeros(1), cap)
    # Greedy layer by layer is the last of the kept paths in dictionary order.
    assert trace.widths[0].tolist() == max(paths[macs <= limit].tolist())


def test_greedy_of_equal_values_takes_the_narrowest():
    network = random_network(tiny_backbone())
    greedy = Greedy(network.agent, network.table, torch.zeros(2), torch.ones(2))
    allowed = torch.tensor([[True, True, True], [False, True, True]])
    assert greedy.pick(torch.zeros(2, 3), allowed).tolist() == [1, 2]
