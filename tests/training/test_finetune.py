"""Tests of training/finetune.py."""

import pytest
import torch
from torch.nn import functional as F

from tests.training.support import coloured, lively_network, plain_batches, tiny_run
from training import finetune
from training.batches import generator
from training.finetune import SHARING, some, train
from training.supernet import update

PATHS = [[3] * 8, [3, 1, 3, 1, 3, 1, 3, 1]]
SETTINGS = {"epochs": 2, "learning_rate": 0.05}


def _state(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


def _changed(network, before):
    return {n for n, value in network.state_dict().items() if not torch.equal(value, before[n])}


def _trained(folder, paths, settings=SETTINGS, **sections):
    """A network after the stage, and its state before."""
    run = tiny_run(folder, finetune=settings, **sections)
    network = lively_network(run.backbone)
    before = _state(network)
    train(run, network, paths)
    return network, before


def _loss(network, path):
    (batch,) = plain_batches(coloured(60, seed=50), 60).epoch(0)
    with torch.no_grad():
        return F.cross_entropy(network(batch.images, path), batch.labels).item()


def test_train_random_paths_change_all_weights_but_neither_statistics_nor_agent(tmp_path):
    network, before = _trained(tmp_path, None)
    weights = {n for n in before if n.endswith((".weight", ".bias", ".gamma", ".beta"))}
    assert _changed(network, before) == {n for n in weights if not n.startswith("agent.")}
    for layer in range(1, 8):
        changed = (network.convs[layer].gamma != before[f"convs.{layer}.gamma"]).any(dim=1)
        assert changed.all(), f"layer {layer} was trained at the input widths {changed}"


def test_train_paths_train_the_input_widths_that_they_use_and_leave_the_agent(tmp_path):
    network, before = _trained(tmp_path, PATHS)
    assert not any(name.startswith("agent.") for name in _changed(network, before))
    for layer in range(1, 8):
        changed = (network.convs[layer].gamma != before[f"convs.{layer}.gamma"]).any(dim=1)
        # 1 is the narrowest path's as well, 4 the full network's.
        assert changed.tolist() == [True, False, True, True], f"layer {layer}"


def test_train_of_an_agent_of_two_paths_trains_these_and_no_random_ones(tmp_path):
    network, before = _trained(tmp_path, [])
    for part in ("gamma", "mean"):
        for layer in range(1, 8):
            name = f"convs.{layer}.{part}"
            changed = (network.state_dict()[name] != before[name]).any(dim=1)
            assert changed.tolist() == [True, False, False, True], name


def test_train_statistics_are_taken_anew_along_the_paths_and_then_frozen(tmp_path):
    many = {"batch_size": 4}
    untrained, before = _trained(tmp_path / "0", PATHS, {"epochs": 0}, supernet=many)
    weights = {n for n, _ in untrained.named_parameters()}
    assert not weights & _changed(untrained, before)
    for layer in range(1, 8):
        changed = (untrained.convs[layer].mean != before[f"convs.{layer}.mean"]).any(dim=1)
        assert changed.tolist() == [True, False, True, True], f"layer {layer}"
    trained, _ = _trained(tmp_path / "1", PATHS, {"epochs": 1}, supernet=many)
    for one, other in zip(untrained.convs, trained.convs, strict=True):
        assert torch.equal(one.mean, other.mean)
        assert torch.equal(one.var, other.var)


@pytest.mark.parametrize(("paths", "batch_epochs"), [(PATHS, 3), (None, 0)])
def test_train_brings_batch_statistics_along_paths_but_in_the_last_epochs(
    tmp_path, monkeypatch, paths, batch_epochs
):
    run = tiny_run(tmp_path, finetune={"epochs": 4})
    network = lively_network(run.backbone)
    modes, means = [], []

    def noted(optimizer):
        modes.append(network.training)
        means.append(network.convs[1].mean.clone())
        update(optimizer)

    monkeypatch.setattr(finetune, "update", noted)
    train(run, network, paths)
    steps = batch_epochs * 4
    assert modes == [True] * steps + [False] * (16 - steps)
    frozen = means[steps:]
    assert all(torch.equal(mean, frozen[0]) for mean in (*frozen, network.convs[1].mean))
    if paths:
        # What the batches left behind is replaced by an estimate along the paths.
        assert not torch.equal(means[steps - 1], frozen[0])
    assert not network.training


def test_train_lowers_the_loss_along_every_path(tmp_path):
    network, _ = _trained(tmp_path / "0", PATHS, {"epochs": 0})
    before = [_loss(network, path) for path in (*PATHS, [4] * 8, [1] * 8)]
    network, _ = _trained(tmp_path / "1", PATHS, {"epochs": 10, "learning_rate": 0.1})
    after = [_loss(network, path) for path in (*PATHS, [4] * 8, [1] * 8)]
    assert all(now < once - 0.02 for now, once in zip(after, before, strict=True)), (before, after)


@pytest.fixture
def network(tmp_path):
    return lively_network(tiny_run(tmp_path).backbone)


@pytest.fixture
def gradients(network, tmp_path, monkeypatch):
    """Gives the network's gradients in the first step of the stage, and the step's batch."""

    def run(images, paths):
        run = tiny_run(
            tmp_path,
            images,
            supernet={"label_smoothing": 0.2, "batch_size": images},
            finetune={"epochs": 1},
        )
        found = {}

        def kept(optimizer):
            found.update({n: p.grad.clone() for n, p in _backbone(network)})
            optimizer.zero_grad()

        monkeypatch.setattr(finetune, "update", kept)
        train(run, network, paths)
        (batch,) = run.batches(images).epoch(run.config.supernet.epochs + 1)
        return found, batch

    return run


def _check_taught(network, batch, found, students):
    """Check gradients; `students` gives further students' logits."""
    full = network(batch.images, [4] * 8)
    taught = full.softmax(1).detach()
    loss = F.cross_entropy(full, batch.labels, label_smoothing=0.2)
    for logits in (network(batch.images, [1] * 8), *students):
        loss = loss + F.cross_entropy(logits, taught)
    loss.backward()
    for name, parameter in _backbone(network):
        torch.testing.assert_close(found[name], parameter.grad, atol=1e-5, rtol=1e-4)


def test_train_full_network_teaches_the_narrowest_and_the_paths(network, gradients):
    found, batch = gradients(16, PATHS)
    _check_taught(network, batch, found, [network(batch.images, path) for path in PATHS])


def test_train_random_paths_divide_the_batch(network, gradients, monkeypatch):
    drawn = iter(PATHS)
    monkeypatch.setattr(finetune, "draw_path", lambda backbone, random: next(drawn))
    found, batch = gradients(SHARING + 8, None)
    parts = zip(torch.split(batch.images, SHARING), PATHS, strict=True)
    student = torch.cat([network(images, path) for images, path in parts])
    _check_taught(network, batch, found, [student])


def _backbone(network):
    return [(n, p) for n, p in network.named_parameters() if not n.startswith("agent.")]


@pytest.mark.parametrize("paths", [None, PATHS], ids=["random", "found"])
def test_train_sees_other_batches_than_the_stage_before(tmp_path, paths):
    one, _ = _trained(tmp_path / "0", paths)
    other, _ = _trained(tmp_path / "1", paths, supernet={"epochs": 4})
    assert not torch.equal(one.head[0].weight, other.head[0].weight)


def test_train_done_stage_gives_its_backbone_at_once(tmp_path):
    network, _ = _trained(tmp_path, PATHS)
    run = tiny_run(tmp_path, finetune=SETTINGS)
    again = lively_network(run.backbone, seed=1)
    train(run, again, PATHS)
    changed = _changed(again, _state(network))
    assert changed == {n for n in again.state_dict() if n.startswith("agent.")}


def test_some_gives_as_many_different_ones_as_asked():
    numbers = [[number] for number in range(5)]
    random = generator(0)
    orders = [some(numbers, 5, random) for _ in range(20)]
    assert all(sorted(order) == numbers for order in orders)
    assert len({str(order) for order in orders}) > 10
    assert {some(numbers, 1, random)[0][0] for _ in range(60)} == set(range(5))
