"""Tests of training/layerwise.py."""

from itertools import product

import numpy as np
import pytest
import torch

from models.agent import new_agent
from models.compute import path_macs
from models.config import AgentConfig
from models.network import Greedy, Network
from tests.training.support import chain, lively_network, tiny_run
from training.batches import generator
from training.checkpoint import Checkpoints
from training.layerwise import TAU, Learner, train
from training.qlearning import Episodes, draw_penalty
from training.runlog import LOG, SPEED, read_log


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


def test_learn_target_network_follows_and_has_no_gradient(episodes):
    network = lively_network()
    learner = Learner.of(network, 1e-3)
    before = _parameters(learner.target)
    learner.learn(episodes, torch.ones(64), 0.1)
    learnt = dict(network.agent.named_parameters())
    for name, followed in learner.target.named_parameters():
        expected = before[name] + TAU * (learnt[name].detach() - before[name])
        torch.testing.assert_close(followed, expected)
        assert not followed.requires_grad
    assert not torch.equal(learner.target.decoder.weight, network.agent.decoder.weight)


def test_learn_changes_the_networks_own_agent_at_the_given_rate(episodes):
    network = lively_network()
    learner = Learner.of(network, 1e-3)
    before = _parameters(network.agent)
    learner.learn(episodes, torch.ones(64), 0.0)
    assert all(_same(network.agent, before).values())
    learner.learn(episodes, torch.ones(64), 0.01)
    assert not any(_same(network.agent, before).values())


# What each path does to the loss of an easy and of a hard image, by the two widths chosen. What
# is hard shows before the first decision only, so the second needs the memory.
LOSS = {
    "easy": {(1, 1): 0.20, (1, 2): 0.18, (2, 1): 0.16, (2, 2): 0.10},
    "hard": {(1, 1): 2.00, (1, 2): 1.00, (2, 1): 0.90, (2, 2): 0.20},
}
LOOKS = {"easy": torch.zeros(4), "hard": torch.tensor([1.0, -1.0, 1.0, 0.0])}
# Before the second decision only the width just computed is seen: channels beyond it are zero.
COMPUTED = {1: torch.tensor([1.0, 1.0, 0.0, 0.0]), 2: torch.ones(4)}
PATHS = list(product((1, 2), repeat=2))


def _all_episodes():
    kinds = [(kind, path) for kind in LOSS for path in PATHS]
    first = torch.stack([LOOKS[kind] for kind, _ in kinds])
    widths = [[2, *path] for _, path in kinds]
    loss = [LOSS[kind][path] for kind, path in kinds]
    full = [LOSS[kind][2, 2] for kind, _ in kinds]
    second = torch.stack([COMPUTED[path[0]] for _, path in kinds])
    return Episodes([first, second], torch.tensor(widths), torch.tensor(loss), torch.tensor(full))


def _learnt(form, penalties):
    torch.manual_seed(0)
    network = Network(chain(3, 4, 2), AgentConfig(form, encoding=8, hidden=16))
    learner = Learner.of(network, 1e-2)
    episodes, random = _all_episodes(), generator(2)
    for step in range(500):
        rows = torch.randint(len(episodes), (128,), generator=random)
        penalty = draw_penalty(128, *penalties, random)
        learner.learn(episodes[rows], penalty, 1e-2 * (1 - step / 500))
    return network


def _chosen(network, kind, penalty):
    choose = Greedy(network.agent, network.table, torch.tensor([penalty]), torch.tensor([2.0]))
    whole = torch.tensor([2])
    first = choose(1, LOOKS[kind][None], whole, whole)
    return first.item(), choose(2, COMPUTED[first.item()][None], whole, first).item()


def _best(network, kind, penalty, form):
    def cost(path):
        macs = path_macs(np.array([[2, *path]]), network.table, agent=False)[0]
        paid = sum(path) if form == "paper" else macs / network.table.full
        return LOSS[kind][path] + penalty * paid

    first, second = sorted(PATHS, key=cost)[:2]
    assert cost(second) - cost(first) > 0.02  # a tie would show nothing
    return first


def test_q_learning_priced_finds_the_best_path_of_every_penalty():
    network = _learnt("priced", (0.03, 10.0))
    found = {}
    for kind, penalty in product(LOSS, (0.05, 1.0, 5.0)):
        found[kind, penalty] = _chosen(network, kind, penalty)
        assert found[kind, penalty] == _best(network, kind, penalty, "priced"), (kind, penalty)
    assert len(set(found.values())) >= 3


@pytest.mark.parametrize("penalty", [0.03, 0.9])
def test_q_learning_paper_finds_the_best_path_of_its_penalty(penalty):
    network = _learnt("paper", (penalty, penalty * 1.000001))
    for kind in LOSS:
        # The price is in what it learnt: it is told none.
        assert _chosen(network, kind, 0.0) == _best(network, kind, penalty, "paper")


def _run(folder, form="priced"):
    """A run and a network with the agent that it is to train."""
    run = tiny_run(folder, agent={"form": form, "ways": 2})
    network = run.network().eval()
    network.agent = new_agent(run.backbone, AgentConfig(form, encoding=8, hidden=16))
    return run, network


@pytest.mark.parametrize("form", ["priced", "paper"])
def test_train_learns_the_agent_on_a_frozen_backbone(tmp_path, form):
    run, network = _run(tmp_path, form)
    backbone, agent = _parameters(network.convs), _parameters(network.agent)
    train(run, network)
    assert all(_same(network.convs, backbone).values())
    assert not any(_same(network.agent, agent).values())


def test_train_leaves_one_checkpoint_and_a_log(tmp_path):
    train(*_run(tmp_path))
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["agent.pt"]
    records = read_log(tmp_path / LOG)
    assert [record["step"] for record in records] == [1, 2, 3, 4]
    assert {"bellman_error", "loss", "baseline", "mean_width"} <= records[0].keys()


def test_train_done_stage_gives_its_agent_at_once(tmp_path):
    run, network = _run(tmp_path)
    train(run, network)
    learnt = _parameters(network.agent)
    again, other = _run(tmp_path)
    train(again, other)
    assert all(_same(other.agent, learnt).values())
    assert len(read_log(tmp_path / LOG)) == 4


class StoppedError(Exception):
    pass


def test_train_stopped_at_many_places_and_resumed_learns_the_same(tmp_path, monkeypatch):
    run, expected = _run(tmp_path / "at-once")
    train(run, expected)
    save, saves_left = Checkpoints.save, 0

    def stopping_save(self, *args, **kwargs):
        nonlocal saves_left
        saves_left -= 1
        if saves_left < 0:
            raise StoppedError
        save(self, *args, **kwargs)

    monkeypatch.setattr(Checkpoints, "save", stopping_save)
    for _ in range(3):
        saves_left = 2
        with pytest.raises(StoppedError):
            train(*_run(tmp_path / "stopped"))
    saves_left = 1
    run, network = _run(tmp_path / "stopped")
    train(run, network)
    assert all(_same(network.agent, _parameters(expected.agent)).values())
    assert _logged(tmp_path / "stopped") == _logged(tmp_path / "at-once")


def _logged(folder):
    return [{k: v for k, v in r.items() if k != SPEED} for r in read_log(folder / LOG)]
