from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from models import backbones
from models.network import Network
from models.pretrained import channel_orders, load_plain, read_state
from tests.models.plain_networks import VGG16, Block, MCifarNet, ResNet18, ResNet20
from tests.models.support import random_images, random_paths, randomise_norm, tiny_backbone

CLASSES = 5
# Name → the plain network, width factor, image size.
PLAIN = {
    "mcifarnet": (lambda: MCifarNet([8, 8, 16, 16, 16, 24, 24, 24], CLASSES), 0.125, 12),
    "vgg16": (lambda: VGG16(4, CLASSES, hidden=0), 0.0625, 32),
    "vgg16-large": (lambda: VGG16(4, CLASSES, hidden=256), 0.0625, 96),
    "resnet20": (lambda: ResNet20(8, CLASSES), 0.5, 12),
    "resnet18": (lambda: ResNet18(4, CLASSES), 0.0625, 64),
}


def plain_network(name):
    """A plain network in evaluation mode, with random statistics."""
    torch.manual_seed(1)
    plain = PLAIN[name][0]()
    for module in plain.modules():
        if isinstance(module, nn.BatchNorm2d):
            randomise_norm(module)
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            # Filters of different norms, or importance would hardly differ.
            module.weight.data *= torch.logspace(-0.5, 0.5, len(module.weight))[:, None, None, None]
    return plain.eval().requires_grad_(False)


def empty_network(name):
    """A prunable network of the same shape."""
    _, width, image_size = PLAIN[name]
    torch.manual_seed(2)
    shape = name.partition("-")[0]
    return Network(backbones.build(shape, CLASSES, width=width, image_size=image_size)).eval()


def loaded(name):
    network = empty_network(name)
    load_plain(network, plain_network(name).state_dict())
    return network


def importance(conv):
    return conv.weight.abs().sum((1, 2, 3)) * conv.gamma[0].abs() / (conv.var[0] + 1e-5).sqrt()


@pytest.mark.parametrize("name", PLAIN)
def test_load_plain_at_full_width_computes_what_the_plain_network_does(name):
    network = loaded(name)
    images = random_images(network.backbone, 6)
    with torch.no_grad():
        expected = plain_network(name)(images)
        found = network(images, [network.backbone.groups] * network.backbone.n_layers)
    assert expected.std(dim=0).min() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", PLAIN)
def test_load_plain_gives_every_input_width_the_plain_statistics(name):
    network = loaded(name)
    for conv in (*network.convs, *network.projections.values()):
        for rows in (conv.gamma, conv.beta, conv.mean, conv.var):
            assert (rows == rows[0]).all()
        assert not torch.equal(conv.var[0], torch.ones_like(conv.var[0]))


@pytest.mark.parametrize("name", PLAIN)
def test_load_plain_orders_channels_by_falling_importance_where_the_order_is_free(name):
    network = loaded(name)
    layers = network.backbone.layers
    # Of a residual block, only the channels between its two layers are its own.
    free = [i for i, x in enumerate(layers) if x.shortcut is None and (i or "resnet" not in name)]
    assert len(free) >= 8
    for index in free:
        assert (importance(network.convs[index]).diff() <= 1e-5).all()


@pytest.mark.parametrize("name", ["resnet20", "resnet18"])
def test_load_plain_orders_a_stream_by_the_shares_of_all_that_write_it(name):
    network = loaded(name)
    n_blocks = {"resnet20": 3, "resnet18": 2}[name]
    writers = [importance(network.convs[index]) for index in range(0, 2 * n_blocks + 1, 2)]
    shares = sum(writer / writer.sum() for writer in writers)
    assert (shares.diff() <= 1e-6).all()
    assert any((writer.diff() > 1e-3).any() for writer in writers)


@pytest.mark.parametrize("name", PLAIN)
def test_load_plain_narrow_path_computes_what_the_plain_network_does_with_only_its_channels(name):
    network = loaded(name)
    images = random_images(network.backbone, 3)
    for path in random_paths(network.backbone, 4).tolist():
        plain = plain_network(name)
        for index, (norm, module) in enumerate(zip(*written_by(plain, name), strict=True)):
            order = places(network.convs[index].gamma[0], norm.weight)
            keep_only(module, order[: network.backbone.out_channels(index, path[index])])
        found = network(images, path)
        torch.testing.assert_close(found, plain(images), rtol=1e-3, atol=1e-3)


def written_by(plain, name):
    """Each layer's normalisation in a plain network, and the module that gives its output."""
    norms = [
        module
        for key, module in plain.named_modules()
        if isinstance(module, nn.BatchNorm2d) and "downsample" not in key
    ]
    if "resnet" not in name:
        return norms, norms
    blocks = [module for module in plain.modules() if isinstance(module, Block)]
    pairs = zip(norms[1::2], blocks, strict=True)
    return norms, [norms[0], *(module for pair in pairs for module in pair)]


def places(ordered, values):
    """Where each of some different values was before they were ordered."""
    assert len(values.unique()) == len(values)
    return (ordered[:, None] == values).int().argmax(dim=1)


def keep_only(module, channels):
    """Make a module of a plain network give zeros but for some of its channels."""

    def masked(_module, _inputs, y):
        mask = torch.zeros(y.shape[1])
        mask[channels] = 1
        return y * mask[:, None, None]

    module.register_forward_hook(masked)


@pytest.mark.parametrize("name", ["mcifarnet", "vgg16"])
def test_load_plain_narrowest_path_keeps_the_most_important_channels(name):
    network, plain = loaded(name), plain_network(name)
    convs = [module for module in plain.modules() if isinstance(module, nn.Conv2d)]
    norms, _ = written_by(plain, name)
    for prunable, conv, norm in zip(network.convs, convs, norms, strict=True):
        scale = norm.weight.abs() / (norm.running_var + norm.eps).sqrt()
        best = (conv.weight.abs().sum((1, 2, 3)) * scale).topk(len(scale) // 4).indices
        kept = places(prunable.gamma[0], norm.weight)[: len(best)]
        assert set(kept.tolist()) == set(best.tolist())


def test_load_plain_of_a_biased_convolution_folds_the_bias_into_the_mean():
    state = plain_network("mcifarnet").state_dict()
    unbiased, biased = empty_network("mcifarnet"), empty_network("mcifarnet")
    load_plain(unbiased, state)
    state["conv1.bias"] = torch.full((8,), 0.5)
    load_plain(biased, state)
    torch.testing.assert_close(biased.convs[1].mean, unbiased.convs[1].mean - 0.5)


def test_load_plain_of_a_data_parallel_state_strips_its_prefix():
    state = plain_network("resnet20").state_dict()
    network = empty_network("resnet20")
    load_plain(network, {f"module.{name}": value for name, value in state.items()})
    torch.testing.assert_close(network.state_dict()["head.0.bias"], state["linear.bias"])


def test_load_plain_of_a_float16_state_computes_with_it_in_float32():
    state = {name: value.half() for name, value in plain_network("mcifarnet").state_dict().items()}
    # The norm of such a filter is beyond what float16 can hold.
    state["conv1.weight"][3] = 2000
    expected, network = empty_network("mcifarnet"), empty_network("mcifarnet")
    load_plain(expected, {name: value.float() for name, value in state.items()})
    load_plain(network, state)
    for name, value in network.state_dict().items():
        assert torch.equal(value, expected.state_dict()[name])


def test_load_plain_leaves_the_agent_alone():
    network = empty_network("resnet18")
    before = {name: value.clone() for name, value in network.agent.state_dict().items()}
    load_plain(network, plain_network("resnet18").state_dict())
    assert all(torch.equal(before[k], v) for k, v in network.agent.state_dict().items())


@pytest.mark.parametrize("name", PLAIN)
def test_load_plain_of_another_seed_changes_every_tensor_of_the_backbone(name):
    network, before = loaded(name), empty_network(name).state_dict()
    same = [k for k, v in network.state_dict().items() if torch.equal(v, before[k])]
    assert all(name.startswith("agent.") for name in same)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda state: state.pop("layer2.0.bn2.running_var"),
            "layer2.0.bn2.running_var is missing",
        ),
        (lambda state: state.pop("layer3.0.downsample.0.weight"), "downsample.0.weight is missing"),
        (
            lambda state: state.update(fc=torch.zeros(1)),
            "1 tensors are not of this backbone, such as fc",
        ),
        (
            lambda state: state.update({"fc.bias": torch.zeros(1000)}),
            r"fc.bias is \(1000,\), the backbone wants \(5,\)",
        ),
    ],
)
def test_load_plain_of_a_state_that_does_not_fit_changes_nothing(change, message):
    state, network = plain_network("resnet18").state_dict(), empty_network("resnet18")
    change(state)
    with pytest.raises(ValueError, match=message):
        load_plain(network, state)
    before = empty_network("resnet18").state_dict()
    assert all(torch.equal(before[k], v) for k, v in network.state_dict().items())


def test_channel_orders_of_a_padded_stage_put_the_carried_channels_first():
    layers = empty_network("resnet20").backbone.layers
    orders = channel_orders(layers, [torch.rand(layer.out_channels) for layer in layers])
    narrow, wide = orders[0], orders[8]
    assert wide[: len(narrow)].tolist() == (narrow + 4).tolist()
    assert sorted(wide.tolist()) == list(range(2 * len(narrow)))


def test_channel_orders_of_a_projected_stage_are_free():
    layers = empty_network("resnet18").backbone.layers
    importance = [torch.rand(layer.out_channels) for layer in layers]
    importance[5] = importance[7] = importance[9] = torch.arange(8.0)
    orders = channel_orders(layers, importance)
    importance[6] = importance[8] = torch.arange(8.0)
    assert channel_orders(layers, importance)[6].tolist() == [7, 6, 5, 4, 3, 2, 1, 0]
    assert orders[6].tolist() == orders[8].tolist() != orders[4].tolist()


def test_channel_orders_of_a_layer_that_is_all_zero_are_still_an_order():
    backbone = tiny_backbone()
    orders = channel_orders(backbone.layers, [torch.zeros(x.out_channels) for x in backbone.layers])
    assert orders[5].tolist() == list(range(12))


@pytest.mark.parametrize("suffix", ["safetensors", "pt", "th"])
def test_read_state_of_a_saved_state_gives_it_back(tmp_path, suffix):
    state, path = plain_network("resnet20").state_dict(), tmp_path / f"plain.{suffix}"
    save_file(state, path) if suffix == "safetensors" else torch.save(state, path)
    found = read_state(path)
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], state[name]) for name in state)


def test_read_state_of_a_checkpoint_gives_its_state_dict(tmp_path):
    state = {"a": torch.ones(2)}
    torch.save({"state_dict": state, "epoch": 3, "best": 91.7}, tmp_path / "x.pt")
    assert torch.equal(read_state(tmp_path / "x.pt")["a"], state["a"])


@pytest.mark.parametrize("content", [b"", b"junk", b"PK\x03\x04junk"])
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_read_state_of_junk_raises(tmp_path, suffix, content):
    (tmp_path / f"x.{suffix}").write_bytes(content)
    with pytest.raises(ValueError, match="neither safetensors nor plain tensors"):
        read_state(tmp_path / f"x.{suffix}")


@pytest.mark.parametrize(
    "content", [[torch.ones(1)], {"epoch": 3}, {1: torch.ones(1)}, {"state_dict": 3}]
)
def test_read_state_of_something_else_raises(tmp_path, content):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(ValueError, match="not a mapping"):
        read_state(tmp_path / "x.pt")


def test_read_state_of_a_pickled_module_raises(tmp_path):
    torch.save(nn.Linear(1, 1), tmp_path / "x.pt")
    with pytest.raises(ValueError, match="neither safetensors nor plain tensors"):
        read_state(tmp_path / "x.pt")


@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_read_state_of_a_missing_file_raises(tmp_path, suffix):
    with pytest.raises(FileNotFoundError):
        read_state(tmp_path / f"x.{suffix}")
