"""Tests of training/supernet.py."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models import backbones
from models.compute import path_macs
from models.config import AgentConfig
from models.network import Network
from tests.models.support import small_backbone, stream_backbone
from tests.training.support import (
    SIZE,
    chain,
    coloured,
    lively_network,
    plain_batches,
    tiny_run,
)
from training.batches import generator
from training.supernet import (
    MAX_GRADIENT_NORM,
    STAGE,
    draw_path,
    draw_paths,
    learning_rate,
    mixed,
    reestimate_statistics,
    sandwich,
    sgd,
    tie,
    train,
    update,
)


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Network(chain(4, 8, 4), AgentConfig(encoding=4, hidden=8))


def test_draw_paths_every_layer_takes_every_width():
    paths = draw_paths(500, chain(4, 8, 4), generator(0))
    assert paths.shape == (500, 4)
    for layer in range(4):
        assert paths[:, layer].unique().tolist() == [1, 2, 3, 4]


def test_draw_paths_are_cheap_and_dear_and_not_uniform():
    network = Network(chain(8, 8, 4))
    paths = draw_paths(1000, network.backbone, generator(0))
    shares = path_macs(paths.numpy(), network.table, agent=False) / network.table.full
    # Independent widths would all cost about the same: their deviation is 0.08 here.
    assert shares.std() > 0.2
    assert (paths != paths[:, :1]).any(dim=1).float().mean() > 0.5


def test_draw_paths_tied_layers_follow_and_others_do_not():
    backbone = small_backbone("resnet20")
    paths = draw_paths(200, backbone, generator(0))
    follows = [(paths[:, i] == paths[:, i - 2]).all().item() for i in range(2, backbone.n_layers)]
    assert follows == [backbone.tied(i) for i in range(2, backbone.n_layers)]


def test_tie_passes_a_width_on_from_block_to_block():
    # Layers 2 and 6 are tied, to layers 0 and 4.
    paths = tie(torch.tensor([[3, 1, 2, 2, 1, 3, 2], [1, 2, 3, 3, 3, 1, 1]]), stream_backbone())
    assert paths.tolist() == [[3, 1, 3, 2, 1, 3, 1], [1, 2, 1, 3, 3, 1, 3]]
    # Layers 2, 4 and 6 add to one stream, which the stem begins.
    paths = tie(torch.tensor([[2] + [4, 1] * 9]), small_backbone("resnet20"))
    assert paths[0, :8].tolist() == [2, 4, 2, 4, 2, 4, 2, 4]


def test_draw_path_same_seed_same_path():
    paths = {tuple(draw_path(chain(8, 8, 4), generator(seed))) for seed in (0, 0, 1, 2)}
    assert len(paths) == 3


def test_sandwich_is_full_then_narrowest_then_random():
    paths = sandwich(chain(4, 8, 4), 3, generator(5))
    assert paths[:2] == [[4, 4, 4, 4], [1, 1, 1, 1]]
    assert len(paths) == 5
    assert paths[2] != paths[3] != paths[4]


def test_learning_rate_rises_then_falls_to_zero():
    rates = [learning_rate(step / 100, 0.4) for step in range(101)]
    assert max(rates) == rates[10] == pytest.approx(0.4)
    assert rates[5] == pytest.approx(0.2)
    assert rates[55] == pytest.approx(0.2)
    assert rates[0] == rates[100] == 0


@pytest.mark.parametrize(("name", "size"), [("mcifarnet", 32), ("resnet18", 64)])
def test_sgd_decays_weights_of_convolutions_and_linears_only(name, size):
    # As many classes as groups: shapes alone do not tell a weight from a norm's scale.
    network = Network(backbones.build(name, 4, width=0.0625, image_size=size))
    optimizer = sgd(network, 0.1, 5e-4)
    names = {id(p): n for n, p in network.named_parameters()}
    decayed, others = ({names[id(p)] for p in g["params"]} for g in optimizer.param_groups)
    weights = {
        f"{n}.weight"
        for n, m in network.named_modules()
        if not n.startswith("agent") and getattr(getattr(m, "weight", None), "ndim", 1) > 1
    }
    assert decayed == weights
    assert "head.0.weight" in decayed
    everything = {n for n in names.values() if not n.startswith("agent.")}
    assert others == everything - weights
    assert [g["weight_decay"] for g in optimizer.param_groups] == [5e-4, 0.0]


def test_update_bounds_the_gradients_and_clears_them(network):
    optimizer = torch.optim.SGD(network.head.parameters(), lr=1.0)
    before = nn.utils.parameters_to_vector(network.head.parameters()).detach()
    for parameter in network.head.parameters():
        parameter.grad = torch.full_like(parameter, 100.0)
    update(optimizer)
    step = nn.utils.parameters_to_vector(network.head.parameters()).detach() - before
    assert step.norm().item() == pytest.approx(MAX_GRADIENT_NORM, rel=1e-4)
    assert network.head[0].weight.grad is None


def test_update_gradients_left_in_the_agent_change_nothing(network):
    """A resumed run has lost them: they must not count in the bound."""
    optimizer = sgd(network, 1.0, 0.0)
    before = network.head[0].weight.detach().clone()
    network.head[0].weight.grad = torch.full_like(before, 0.1)
    network.agent.decoder.weight.grad = torch.full((4, 8), 1e6)
    update(optimizer)
    # The step of Nesterov's momentum, whose first is 1 + 0.9 gradients long.
    torch.testing.assert_close(network.head[0].weight, before - 0.19)


def test_reestimate_statistics_mends_those_of_mixed_paths(tmp_path):
    run = tiny_run(tmp_path, supernet={"epochs": 10})
    network = run.network()
    train(run, network)
    for conv in network.convs:
        conv.mean.add_(0.5)
        conv.var.fill_(1.0)
    spoilt = _mixed_loss(network)
    batches = plain_batches(coloured(64), 16)
    sample = [batch for epoch in range(75) for batch in batches.epoch(epoch)]
    weights = {n: p.clone() for n, p in network.named_parameters()}
    draw = partial(draw_path, run.backbone, generator(3))
    reestimate_statistics(network, sample, draw, run.autocast())
    assert _mixed_loss(network) < 0.8 * spoilt
    assert all(torch.equal(p, weights[n]) for n, p in network.named_parameters())
    assert {conv.momentum for conv in network.convs} == {0.1}


def _mixed_loss(network):
    network.eval()
    (batch,) = plain_batches(coloured(90, seed=50), 90).epoch(0)
    paths = draw_paths(90, network.backbone, generator(4))
    with torch.no_grad():
        return F.cross_entropy(network.along(batch.images, paths), batch.labels).item()


def test_train_learns_full_and_narrow_networks_and_leaves_the_agent(tmp_path):
    run = tiny_run(tmp_path, supernet={"epochs": 10})
    network = run.network()
    agent = {n: p.clone() for n, p in network.agent.named_parameters()}
    train(run, network)
    (batch,) = plain_batches(coloured(90, seed=50), 90).epoch(0)
    for width in (4, 1):
        logits = network(batch.images, [width] * 8)
        assert (logits.argmax(1) == batch.labels).float().mean() > 0.6
    assert not network.training
    assert all(torch.equal(p, agent[n]) for n, p in network.agent.named_parameters())


def test_train_done_stage_gives_its_backbone_to_a_network_with_any_agent(tmp_path):
    run = tiny_run(tmp_path, supernet={"epochs": 1})
    network = run.network()
    train(run, network)
    assert not any(n.startswith("agent.") for n in run.checkpoints.load(STAGE).state["network"])
    other = lively_network(run.backbone, "paths", seed=1)
    agent = {n: p.clone() for n, p in other.agent.state_dict().items()}
    train(run, other)
    for name, value in network.state_dict().items():
        if not name.startswith("agent."):
            assert torch.equal(other.state_dict()[name], value), name
    assert all(torch.equal(p, agent[n]) for n, p in other.agent.state_dict().items())


def test_train_on_small_crops_measures_the_statistics_on_images_as_large_as_served(tmp_path):
    supernet = {"epochs": 2, "crop": 0.5, "crop_size": 8}
    run = tiny_run(tmp_path, supernet=supernet)
    network, sides = run.network(), []
    network.convs[0].register_forward_hook(
        lambda _conv, inputs, _y: sides.append((inputs[0].shape[-1], torch.is_grad_enabled()))
    )
    train(run, network)
    assert {side for side, learning in sides if learning} == {8}
    assert {side for side, learning in sides if not learning} == {SIZE}
    assert sides == sorted(sides)  # the statistics come last


@pytest.mark.parametrize(("share", "low", "high"), [(0.0, 0, 0), (1.0, 200, 200), (0.4, 50, 110)])
def test_mixed_batches_are_as_many_as_set(tmp_path, share, low, high):
    run = tiny_run(tmp_path, supernet={"cutmix": share})
    batch = next(run.batches(16).epoch(0))
    before, count = batch.images.clone(), 0
    for step in range(200):
        images, targets = mixed(run, batch._replace(images=before.clone()), generator(0, step))
        count += targets.ndim == 2
        if targets.ndim == 1:
            assert torch.equal(images, before)
            assert torch.equal(targets, batch.labels)
        else:
            torch.testing.assert_close(targets.sum(dim=1), torch.ones(16))
    assert low <= count <= high
