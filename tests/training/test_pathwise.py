"""Tests of training/pathwise.py."""

import pytest
import torch
from torch.nn import functional as F

from models.agent import PathAgent, new_agent
from models.config import AgentConfig, glance_features
from tests.models.support import agent_config, random_images, tiny_backbone
from tests.training.support import lively_network, tiny_run
from training import pathwise
from training.pathwise import Records, rewards, standardise, train
from training.runlog import LOG, read_log

PATHS = ((1,) * 8, (2,) * 8, (3,) * 8)


def _state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def _same(module, before):
    return {name: torch.equal(value, before[name]) for name, value in module.state_dict().items()}


def _run(folder, seed=0, **agent):
    """A run and a network with the agent that it is to train."""
    run = tiny_run(folder, agent=agent)
    network = lively_network(run.backbone, seed=seed)
    network.agent = new_agent(run.backbone, AgentConfig("paths", hidden=32, paths=PATHS))
    return run, network


@torch.no_grad()
def test_rewards_are_what_each_path_does_to_each_image():
    network = lively_network(tiny_backbone(), "paths")
    images, labels = random_images(network.backbone, 20), torch.arange(20) % 3
    records = rewards(network, images, labels)
    assert records.losses.shape == records.right.shape == (20, 5)
    for number, path in enumerate(network.agent.paths):
        logits = network.along(images, path.expand(20, -1))
        expected = F.cross_entropy(logits, labels, reduction="none")
        torch.testing.assert_close(records.losses[:, number], expected)
        assert torch.equal(records.right[:, number], logits.argmax(1) == labels)
    _, trace = network.by_policy(images, torch.ones(20), torch.ones(20))
    torch.testing.assert_close(records.seen, trace.seen[0])


def test_standardise_keeps_what_the_agent_answers():
    backbone = tiny_backbone()
    torch.manual_seed(0)
    agent = PathAgent(backbone, agent_config("paths", backbone))
    features = glance_features(backbone)
    mean, deviation = torch.randn(features) * 5, torch.rand(features) + 0.1
    seen = torch.randn(30, features) * deviation + mean
    before = agent((seen - mean) / deviation)
    standardise(agent, mean, deviation)
    torch.testing.assert_close(agent(seen), before, atol=1e-4, rtol=1e-4)


class MadeUp:
    """Records in which what two paths gain hangs on two of the features that are seen."""

    def __init__(self, features):
        torch.manual_seed(1)
        self.scale, self.offset = torch.logspace(-1, 1, features), torch.randn(features)

    def __call__(self, count=4000):
        z = torch.randn(count, len(self.scale))
        gains = torch.stack([0.3 * z[:, 0] + 0.2, torch.relu(z[:, 1]) - 0.3], dim=1)
        glance = 1 + torch.rand(count, 1)  # is not seen, and does not matter
        losses = torch.cat([glance, glance - gains], dim=1)
        right = torch.cat([torch.zeros(count, 1), gains], dim=1) > 0.1
        return Records(z * self.scale + self.offset, losses, right)


@pytest.fixture
def learnt(tmp_path, monkeypatch):
    """Gives the agent that a rule learns from made-up records, and new ones."""

    def by(rule):
        run, network = _run(
            tmp_path, rule=rule, recordings=1, epochs=25, batch_size=128, learning_rate=5e-3
        )
        made_up = MadeUp(glance_features(run.backbone))
        monkeypatch.setattr(pathwise, "rewards", lambda *_: made_up())
        train(run, network)
        return network.agent.requires_grad_(False), made_up(2000)

    return by


def _check_choices(agent, records):
    """Check that the agent's choices cost little more than the best for each image."""
    for penalty in (0.05, 0.5):
        costs = records.losses + penalty * agent.price
        penalties = torch.full((len(costs),), penalty)
        chosen = agent.choose(agent(records.seen), penalties, torch.full_like(penalties, 2.0))
        spent = costs.gather(1, chosen[:, None]).mean()
        best, alike = costs.min(dim=1).values.mean(), costs.mean(dim=0).min()
        assert best + 0.1 < alike  # or else the check would see nothing
        assert spent - best < 0.15 * (alike - best)


def test_train_by_loss_recovers_how_gains_hang_on_what_is_seen(learnt):
    agent, records = learnt("loss")
    gains = records.losses[:, :1] - records.losses[:, 1:]
    errors = (agent(records.seen) - gains).pow(2).mean(dim=0) / gains.var(dim=0)
    assert (errors < 0.05).all(), errors
    _check_choices(agent, records)


def test_train_gumbel_learns_to_choose_at_every_penalty(learnt):
    _check_choices(*learnt("gumbel"))


def test_train_by_right_answers_recovers_where_the_answer_becomes_right(learnt):
    agent, records = learnt("right")
    found = agent(records.seen) > 0.5
    assert (found == records.right[:, 1:]).float().mean() > 0.9


def test_train_learns_the_agent_on_a_frozen_backbone(tmp_path):
    run, network = _run(tmp_path)
    agent, everything = _state(network.agent), _state(network)
    train(run, network)
    assert not any(_same(network.agent, agent).values())
    assert all(same for n, same in _same(network, everything).items() if n[:6] != "agent.")


def test_train_records_as_often_and_learns_as_long_as_set(tmp_path):
    run, network = _run(tmp_path, recordings=3, epochs=2)
    train(run, network)
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["agent.pt"]
    records = read_log(tmp_path / LOG)
    assert [record["step"] for record in records] == [4, 5]
    assert {"error", "loss", "compute", "reward"} <= records[0].keys()


def test_train_sees_newly_augmented_images_in_each_recording(tmp_path, monkeypatch):
    seen = []

    def noted(network, images, labels):
        seen.append(images)
        return rewards(network, images, labels)

    monkeypatch.setattr(pathwise, "rewards", noted)
    train(*_run(tmp_path, recordings=2))
    assert len(seen) == 2
    assert not torch.equal(seen[0].sort(dim=0).values, seen[1].sort(dim=0).values)


def test_train_done_stage_is_not_learnt_again(tmp_path):
    run, network = _run(tmp_path)
    train(run, network)
    again, other = _run(tmp_path, seed=1)
    train(again, other)
    assert all(_same(other.agent, _state(network.agent)).values())
    assert len(read_log(tmp_path / LOG)) == 2


@pytest.mark.parametrize("epochs", [0, 1])
def test_train_answers_are_numbers_however_short_it_learns(tmp_path, epochs):
    run, network = _run(tmp_path, epochs=epochs)
    train(run, network)
    seen = network.glance(torch.randn(5, 3, 12, 12))[1]
    assert network.agent(seen).isfinite().all()
