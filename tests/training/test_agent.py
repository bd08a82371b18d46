"""Tests of training/agent.py."""

import pytest
import torch

from tests.training.support import lively_network, tiny_run
from training.agent import FOLLOW, Learner, train
from training.qlearning import Episodes
from training.runlog import LOG, read_log


def _parameters(module):
    return {name: p.detach().clone() for name, p in module.state_dict().items()}


def _same(module, before):
    return {name: torch.equal(p, before[name]) for name, p in module.state_dict().items()}


@pytest.fixture
def episodes():
    torch.manual_seed(2)
    widths = torch.randint(1, 5, (64, 5))
    widths[:, 0] = 4
    pooled = [torch.rand(64, 8).half() for _ in range(4)]
    return Episodes(pooled, widths, torch.rand(64), torch.rand(64))


def test_learn_lowers_the_bellman_error(episodes):
    learner = Learner.of(lively_network(), 1e-3)
    errors = [learner.learn(episodes, torch.ones(64), 1e-3) for _ in range(60)]
    assert errors[-1] < 0.5 * errors[0]


def test_learn_slow_copy_follows_and_has_no_gradient(episodes):
    network = lively_network()
    learner = Learner.of(network, 1e-3)
    before = _parameters(learner.slow)
    learner.learn(episodes, torch.ones(64), 0.1)
    fast = dict(network.agent.named_parameters())
    for name, slow in learner.slow.named_parameters():
        expected = before[name] + FOLLOW * (fast[name].detach() - before[name])
        torch.testing.assert_close(slow, expected)
        assert not slow.requires_grad
    assert not torch.equal(learner.slow.decoder.weight, network.agent.decoder.weight)


def test_learn_changes_the_networks_own_agent_at_the_given_rate(episodes):
    network = lively_network()
    learner = Learner.of(network, 1e-3)
    before = _parameters(network.agent)
    learner.learn(episodes, torch.ones(64), 0.0)
    assert all(_same(network.agent, before).values())
    learner.learn(episodes, torch.ones(64), 0.01)
    assert not any(_same(network.agent, before).values())


@pytest.mark.parametrize("form", ["priced", "paper"])
def test_train_learns_the_agent_on_a_frozen_backbone(tmp_path, form):
    run = tiny_run(tmp_path, agent={"form": form})
    network = run.network().eval()
    backbone, agent = _parameters(network.convs), _parameters(network.agent)
    train(run, network, "agent")
    assert all(_same(network.convs, backbone).values())
    assert not any(_same(network.agent, agent).values())


def test_train_leaves_one_checkpoint_and_a_log(tmp_path):
    run = tiny_run(tmp_path)
    train(run, run.network().eval(), "agent")
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["agent.pt"]
    records = read_log(tmp_path / LOG)
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    assert {"bellman_error", "loss", "full_loss", "mean_width"} <= records[0].keys()


def test_train_done_stage_gives_its_agent_at_once(tmp_path):
    run = tiny_run(tmp_path)
    network = run.network().eval()
    train(run, network, "agent")
    learnt = _parameters(network.agent)
    again = run.network().eval()
    train(run, again, "agent")
    assert all(_same(again.agent, learnt).values())
    assert len(read_log(tmp_path / LOG)) == 4
