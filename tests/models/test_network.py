from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models.compute import FLOPS_PER_MAC, path_macs
from models.weights import folded
from tests.models.support import (
    ALL,
    make_backbone,
    make_network,
    random_images,
    random_paths,
)

N = 12


@pytest.mark.parametrize("fold", [False, True])
@pytest.mark.parametrize("name", ALL)
def test_along_mixed_paths_equals_each_image_alone_on_its_path(name, fold):
    network = make_network(name)
    network = folded(network) if fold else network
    images, paths = random_images(network.backbone, N), random_paths(network.backbone, N)
    found = network.along(images, paths)
    assert len(found.unique(dim=0)) == N
    for image, path, logits in zip(images, paths, found, strict=True):
        expected = network(image[None], path.tolist())[0]
        torch.testing.assert_close(logits, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ALL)
def test_along_one_path_equals_forward(name):
    network, images = make_network(name), random_images(make_backbone(name), N)
    for path in random_paths(network.backbone, 4):
        expected = network(images, path.tolist())
        found = network.along(images, path.expand(N, -1))
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ["tiny", "stream"])
def test_along_mixed_paths_gives_the_gradients_of_each_image_alone(name):
    network = make_network(name).requires_grad_(True)
    images, paths = random_images(network.backbone, N), random_paths(network.backbone, N)
    parts = (network.convs, network.projections, network.head)
    weights = [value for part in parts for value in part.parameters()]
    alone = [network(image[None], path.tolist()) for image, path in zip(images, paths, strict=True)]
    expected = torch.autograd.grad(torch.cat(alone).square().sum(), weights)
    found = torch.autograd.grad(network.along(images, paths).square().sum(), weights)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("name", ALL)
def test_folded_network_equals_itself_unfolded(name):
    network = make_network(name)
    images = random_images(network.backbone, N)
    for path in random_paths(network.backbone, 4).tolist():
        expected, found = network(images, path), folded(network)(images, path)
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("name", ALL)
def test_forward_of_narrower_layer_changes_the_answer(name):
    network = make_network(name)
    backbone, images = network.backbone, random_images(network.backbone, 2)
    full = [backbone.groups] * backbone.n_layers
    expected = network(images, full)
    for layer in range(backbone.n_layers):
        if backbone.tied(layer):
            continue
        path = list(full)
        path[layer] -= 1
        while layer + 2 < backbone.n_layers and backbone.tied(layer + 2):
            layer += 2
            path[layer] -= 1
        assert not torch.allclose(network(images, path), expected, atol=1e-3)


@torch.no_grad()
def spoil_the_rest(network, path):
    """Change, in all that the network holds, whatever a path must not read."""
    backbone, k = network.backbone, network.backbone.groups
    widths = [k, k, *path]
    convs = [(conv, i, widths[i + 1]) for i, conv in enumerate(network.convs)]
    convs += [(conv, int(i), widths[int(i)]) for i, conv in network.projections.items()]
    for conv, layer, reads in convs:
        computed = backbone.out_channels(layer, path[layer])
        whole = conv.weight.shape[1]
        conv.weight[computed:] = 1e3
        conv.weight[:, whole * reads // k if layer else whole :] = 1e3
        rows = [row for row in range(k) if row != reads - 1]
        for norm in (conv.gamma, conv.beta, conv.mean, conv.var):
            norm[rows] = norm[:, computed:] = 1e3
    features = backbone.in_channels(backbone.n_layers, path[-1]) * backbone.pool_to**2
    network.head[0].weight[:, features:] = 1e3


@pytest.mark.parametrize("name", ALL)
def test_forward_and_along_read_nothing_beyond_the_prefixes(name):
    images = random_images(make_backbone(name), 3)
    for path in random_paths(make_backbone(name), 4, seed=3).tolist()[1:]:
        network, paths = make_network(name), torch.tensor([path] * 3)
        expected, along = network(images, path), network.along(images, paths)
        spoil_the_rest(network, path)
        assert torch.equal(network(images, path), expected)
        assert torch.equal(network.along(images, paths), along)


@pytest.mark.parametrize("name", ALL)
def test_along_mixed_paths_computes_nothing_for_a_channel_that_is_off(name):
    network = make_network(name)
    images, paths = random_images(network.backbone, N), random_paths(network.backbone, N)
    # The end runs on whole maps: a linear layer's few MACs are not worth a batch of their own.
    macs = path_macs(paths.numpy(), network.table, agent=False)
    ends = network.table.head[-1] - network.table.head[paths[:, -1].numpy() - 1]
    with FlopCounterMode(display=False) as counter:
        network.along(images, paths)
    assert counter.get_total_flops() == FLOPS_PER_MAC * (macs + ends).sum()


@pytest.mark.parametrize("name", ALL)
def test_run_gives_the_chooser_pooled_inputs_and_the_widths_before(name):
    network = make_network(name)
    backbone, layers = network.backbone, []
    images, paths = random_images(backbone, N), random_paths(backbone, N, whole=True)

    def choose(layer, pooled, earlier, before):
        layers.append(layer)
        whole = torch.full((N,), backbone.groups)
        assert torch.equal(earlier, paths[:, layer - 2] if layer > 1 else whole)
        assert torch.equal(before, paths[:, layer - 1])
        # What the layer before computed, and nothing else.
        for image, width in zip(pooled, before.tolist(), strict=True):
            channels = backbone.in_channels(layer, width)
            assert len(image) == backbone.layers[layer].in_channels
            assert not image[channels:].any()
        assert pooled.any()
        return paths[:, layer]

    logits, trace = network.run(images, choose)
    assert tuple(layers) == network.table.decisions
    assert torch.equal(trace.widths, paths)
    macs = path_macs(paths.numpy(), network.table, agent=True)
    assert trace.macs.tolist() == macs.tolist()
    assert len(trace.seen) == len(layers)
    torch.testing.assert_close(logits, network.along(images, paths))


@pytest.mark.parametrize("width", [1, 2, 3])
def test_run_pools_the_mean_of_what_enters_each_decided_layer(width):
    network, entered = make_network("tiny"), []
    for layer in (1, 2, 3, 5):
        network.convs[layer].register_forward_pre_hook(
            lambda _conv, inputs: entered.append(inputs[0].mean((2, 3)))
        )
    images, chosen = random_images(network.backbone, N), torch.full((N,), width)
    _, trace = network.run(images, lambda *_: chosen)
    for pooled, expected in zip(trace.seen, entered, strict=True):
        torch.testing.assert_close(pooled[:, : expected.shape[1]], expected)
        assert not pooled[:, expected.shape[1] :].any()
