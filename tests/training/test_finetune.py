"""Tests of training/finetune.py."""

import pytest
import torch

from models.network import Greedy
from tests.training.support import PREPROCESSING, coloured, lively_network, tiny_run
from training.batches import Batches
from training.finetune import Follower
from training.finetune import train as finetune


def train(run, network, *, epochs=2, learning_rate=0.05, random_share=0.0, first_epoch=5):
    finetune(
        run,
        network,
        "finetune",
        epochs=epochs,
        learning_rate=learning_rate,
        random_share=random_share,
        first_epoch=first_epoch,
    )


def _state(network):
    return {name: value.clone() for name, value in network.state_dict().items()}


@pytest.mark.parametrize("random_share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("form", ["priced", "paper"])
def test_train_changes_the_weights_but_neither_statistics_nor_agent(tmp_path, form, random_share):
    run = tiny_run(tmp_path, agent={"form": form})
    network = lively_network(run.backbone, form)
    before = _state(network)
    train(run, network, random_share=random_share)
    changed = {n for n, value in network.state_dict().items() if not torch.equal(value, before[n])}
    weights = {n for n in before if n.endswith((".weight", ".bias", ".gamma", ".beta"))}
    assert changed == {n for n in weights if not n.startswith("agent.")}


def test_train_lowers_the_loss_along_the_agents_paths(tmp_path):
    run = tiny_run(tmp_path)
    network = lively_network(run.backbone)
    (batch,) = Batches(coloured(60, seed=50), PREPROCESSING, size=60, seed=0).epoch(0)

    def loss():
        penalty = torch.full((60,), 0.5)
        with torch.no_grad():
            logits, _ = network.run(batch.images, Follower(network, penalty))
        return torch.nn.functional.cross_entropy(logits, batch.labels).item()

    before = loss()
    train(run, network, epochs=10, learning_rate=0.1)
    assert loss() < 0.9 * before


def test_train_follows_the_agents_paths(tmp_path):
    run = tiny_run(tmp_path, train=16)
    network = lively_network(run.backbone)
    torch.nn.init.zeros_(network.agent.decoder.weight)
    network.agent.decoder.bias.data = torch.tensor([0.0, 0.0, 1e3, 0.0])  # always width 3
    before = _state(network)
    train(run, network, epochs=1)
    for layer in range(2, 8):
        changed = (network.convs[layer].gamma != before[f"convs.{layer}.gamma"]).any(dim=1)
        assert changed[2], f"layer {layer} was not trained at input width 3"
        assert changed[3]  # the full network's
        assert not changed.all()


def test_train_other_first_epoch_sees_other_batches(tmp_path):
    networks = []
    for number in (0, 1):
        run = tiny_run(tmp_path / str(number))
        network = lively_network(run.backbone)
        train(run, network, first_epoch=number)
        networks.append(network)
    assert not torch.equal(networks[0].head[0].weight, networks[1].head[0].weight)


def test_train_random_share_trains_every_input_width(tmp_path):
    run = tiny_run(tmp_path)
    network = lively_network(run.backbone)
    torch.nn.init.zeros_(network.agent.decoder.weight)
    network.agent.decoder.bias.data = torch.tensor([1e3, 0.0, 0.0, 0.0])  # always width 1
    before = _state(network)
    train(run, network, epochs=4, random_share=0.5)
    for layer in range(2, 8):
        changed = (network.convs[layer].gamma != before[f"convs.{layer}.gamma"]).any(dim=1)
        assert changed.all(), f"layer {layer} was trained at the input widths {changed}"


def test_follower_chooses_as_the_agent_without_gradients():
    network = lively_network()
    pooled = torch.rand(30, 8, requires_grad=True)
    before, penalty = torch.full((30,), 4), torch.full((30,), 0.3)
    follower = Follower(network, penalty)
    greedy = Greedy(network.agent, network.table, penalty, torch.ones(30, dtype=torch.float64))
    for layer in (1, 2):
        widths = follower(layer, pooled, before)
        assert torch.equal(widths, greedy(layer, pooled, before))
        before = widths
    assert not follower.hidden.requires_grad
    assert len(widths.unique()) > 1
