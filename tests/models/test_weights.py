from __future__ import annotations

import pytest
import torch

from models.bundle import tensor_shapes
from models.storage import pack, unpack
from models.weights import export, folded, load
from tests.models.support import (
    ALL,
    agent_config,
    make_backbone,
    random_images,
    random_network,
    random_paths,
    tiny_backbone,
)

FORMS = ["paths", "priced", "paper"]


def make_network(name, form):
    backbone = make_backbone(name)
    return random_network(backbone, agent=agent_config(form, backbone, encoding=5, hidden=6))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ALL)
def test_export_gives_the_tensors_of_a_bundle(name, form):
    network = make_network(name, form)
    shapes = {name: value.shape for name, value in export(network).items()}
    assert shapes == tensor_shapes(network.backbone, network.agent.config)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ALL)
def test_load_of_an_export_answers_and_chooses_alike(name, form):
    network = make_network(name, form)
    again = load(network.backbone, network.agent.config, export(network))
    images, penalty = random_images(network.backbone, 6), torch.full((6,), 0.1)
    cap = torch.full((6,), 2.0).double()
    expected, trace = network.by_policy(images, penalty, cap)
    found, traced = again.by_policy(images, penalty, cap)
    assert torch.equal(trace.widths, traced.widths)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("storage", ["float16", "int8"])
def test_load_of_what_was_stored_small_computes_in_float32(storage):
    network = random_network(tiny_backbone())
    stored = unpack(pack(export(network), storage))
    again = load(network.backbone, network.agent.config, stored)
    assert {value.dtype for value in again.state_dict().values()} == {torch.float32}
    images, path = random_images(network.backbone, 4), random_paths(network.backbone, 3)[2].tolist()
    torch.testing.assert_close(again(images, path), network(images, path), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("form", FORMS)
def test_folded_leaves_the_network_as_it_was(form):
    network = make_network("tiny", form).requires_grad_(True).train()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    copy = folded(network)
    copy.head[0].bias.zero_()
    next(copy.agent.parameters()).zero_()
    assert network.training
    assert all(value.requires_grad for value in network.parameters())
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())


def test_load_gives_a_network_that_only_infers():
    copy = folded(random_network(tiny_backbone()).train())
    assert not copy.training
    assert not any(value.requires_grad for value in copy.parameters())
