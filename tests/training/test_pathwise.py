"""Tests of training/pathwise.py."""

from dataclasses import replace

import pytest
import torch

from models.agent import PathAgent, new_agent
from models.config import PENALTY_MIDPOINT, AgentConfig
from tests.models.support import agent_config, tiny_backbone
from tests.training.support import features_of, lively_network, of_each, tiny_run
from training import pathwise
from training.pathwise import Looks, best_blend, follow, record, standardise, train
from training.runlog import LOG, read_log

PATHS = ((1,) * 8, (2,) * 8, (4,) * 8)


def _state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def _same(module, before):
    return {name: torch.equal(value, before[name]) for name, value in module.state_dict().items()}


def _run(folder, seed=0, views="both", **agent):
    """A run and a network with the agent that it is to train."""
    run = tiny_run(folder, agent=agent)
    network = lively_network(run.backbone, seed=seed)
    config = AgentConfig("paths", hidden=32, paths=PATHS, views=views)
    network.agent = new_agent(run.backbone, config)
    return run, network


@pytest.mark.parametrize("look", range(4))
@torch.no_grad()
def test_standardise_keeps_what_the_agent_answers_at_every_penalty(look):
    backbone = tiny_backbone()
    torch.manual_seed(0)
    agent = PathAgent(backbone, agent_config("paths", backbone))
    others, column = _state(agent), agent.layers(look)[0].weight[:, -1].clone()
    features = features_of(agent, look)
    mean, deviation = torch.randn(features) * 5, torch.rand(features) + 0.1
    seen, penalty = torch.randn(30, features) * deviation + mean, torch.linspace(-0.1, 3, 30)
    before = agent(look, (seen - mean) / deviation, penalty)
    standardise(agent, look, mean, deviation)
    torch.testing.assert_close(agent(look, seen, penalty), before, atol=1e-4, rtol=1e-4)
    assert torch.equal(agent.layers(look)[0].weight[:, -1], column)
    changed = {name for name, same in _same(agent, others).items() if not same}
    assert changed == {f"looks.{look}.0.weight", f"looks.{look}.0.bias"}


# Learning


class MadeUp:
    """Records in which what two paths gain hangs on two of the features that are seen."""

    def __init__(self, features):
        torch.manual_seed(1)
        self.scales = [torch.logspace(-1, 1, n) for n in features]
        self.offsets = [torch.randn(n) for n in features]

    def seen(self, z):
        """Of each look, its first features and noise."""
        noise = [torch.randn(len(z), len(scale) - z.shape[1]) for scale in self.scales]
        looks = [torch.cat([z, rest], dim=1) for rest in noise]
        scaled = [x * s + o for x, s, o in zip(looks, self.scales, self.offsets, strict=True)]
        return [x[:, None] for x in scaled]

    def __call__(self, count=4000):
        z = torch.randn(count, 2)
        gains = torch.stack([0.3 * z[:, 0] + 0.2, torch.relu(z[:, 1]) - 0.3], dim=1)
        glance = 1 + torch.rand(count, 1)  # is not seen, and does not matter
        losses = torch.cat([glance, glance - gains], dim=1)
        right = torch.cat([torch.zeros(count, 1), gains], dim=1) > 0.1
        return Looks(of_each(losses), of_each(right), self.seen(z))


class ToldLate(MadeUp):
    """Records in which only the second look tells whether the second or the last path is right."""

    def __call__(self, count=4000):
        z = torch.randn(count, 2)
        last = z[:, 1] > 0
        right = torch.stack([torch.zeros_like(last), ~last, last], dim=1)
        seen = self.seen(z)
        seen[0] = self.seen(torch.randn(count, 2))[0]
        return Looks(of_each(1 - right.float()), of_each(right), seen)


@pytest.fixture
def learnt(tmp_path, monkeypatch):
    """Gives the agent that a rule learns from made-up records, and new ones."""

    def by(rule, kind=MadeUp):
        run, network = _run(
            tmp_path, rule=rule, recordings=1, epochs=25, batch_size=128, learning_rate=5e-3
        )
        made_up = kind([features_of(network.agent, look) for look in (0, 1)])
        monkeypatch.setattr(pathwise, "looks_of", lambda *_: made_up())
        train(run, network)
        return network.agent.requires_grad_(False), made_up(2000)

    return by


def _whatever_was_before(values):
    """Of three paths (N, 3), where it does not matter which was before."""
    return torch.cat([of[:, :1] for of in values], dim=1)


def _check_choices(agent, looks):
    """Check that the agent's choices cost little more than the best for each image."""
    losses = _whatever_was_before(looks.losses)
    for penalty in (0.05, 0.5):
        # All is known after the first path: what is best is best gone to at once.
        costs = losses + penalty * agent.price * torch.tensor([0, 1, 1])
        last, _, charged = follow(agent, looks.seen, torch.full((len(costs),), penalty))
        spent = (losses.gather(1, last[:, None])[:, 0] + penalty * charged).mean()
        best, alike = costs.min(dim=1).values.mean(), costs.mean(dim=0).min()
        assert best + 0.1 < alike  # or else the check would see nothing
        assert spent - best < 0.2 * (alike - best)


def test_train_by_loss_recovers_how_gains_hang_on_what_is_seen(learnt):
    agent, looks = learnt("loss")
    losses = _whatever_was_before(looks.losses)
    second, last = (losses[:, :1] - losses[:, 1:]).T
    for penalty in (0.05, 0.5):
        # After the second path it goes on where that gains more than it costs.
        onward = (last - second - penalty * agent.price[2]).clamp(min=0)
        expected = [torch.stack([second + onward, last], dim=1), (last - second)[:, None]]
        for look, gains in enumerate(expected):
            found = agent(look, looks.seen[look][:, 0], torch.full((2000,), penalty))
            errors = (found - gains).pow(2).mean(dim=0) / gains.var(dim=0)
            assert (errors < 0.05).all(), (penalty, look, errors)
    _check_choices(agent, looks)


def test_train_gumbel_learns_to_choose_at_every_penalty(learnt):
    _check_choices(*learnt("gumbel"))


def test_train_by_right_answers_recovers_where_the_answer_becomes_right(learnt):
    agent, looks = learnt("right")
    found = agent(0, looks.seen[0][:, 0], torch.full((2000,), 3.0)) > 0.5
    assert (found == _whatever_was_before(looks.right)[:, 1:]).float().mean() > 0.9


def test_train_supervised_imitates_who_knows_the_cheapest_path_that_is_right(learnt):
    agent, looks = learnt("supervised")
    last, _, _ = follow(agent, looks.seen, torch.full((2000,), 0.02))
    right = _whatever_was_before(looks.right)
    expected = torch.where(right.any(1), right.float().argmax(1), 0)
    assert (last == expected).float().mean() > 0.9


@pytest.mark.parametrize("rule", ["right", "loss", "gumbel"])
def test_train_learns_to_go_on_where_only_the_second_look_tells(learnt, rule):
    agent, looks = learnt(rule, ToldLate)
    right = _whatever_was_before(looks.right)
    for penalty in (0.02, PENALTY_MIDPOINT):
        last, _, charged = follow(agent, looks.seen, torch.full((2000,), penalty))
        assert right.gather(1, last[:, None]).float().mean() > 0.9
        # Those at the last path were on the second.
        both = (charged - agent.price[1] - agent.price[2]).abs() < 1e-6
        assert (both == (last == 2)).float().mean() > 0.95


def test_train_learns_the_agent_on_a_frozen_backbone(tmp_path):
    run, network = _run(tmp_path)
    agent, everything = _state(network.agent), _state(network)
    train(run, network)
    assert not any(_same(network.agent, agent).values())
    assert all(same for n, same in _same(network, everything).items() if n[:6] != "agent.")


def test_train_records_as_often_and_learns_as_long_as_set(tmp_path):
    run, network = _run(tmp_path, recordings=3, epochs=2)
    train(run, network)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["agent-records.pt", "agent.pt"]
    records = read_log(tmp_path / LOG)
    assert [record["step"] for record in records] == [4, 5]
    assert {"error", "loss", "compute", "reward"} <= records[0].keys()


def test_train_logs_the_reward_of_what_the_rule_learns_from(learnt):
    agent, looks = learnt("supervised")
    by = {rule: pathwise._policy(agent, looks, rule)["reward"] for rule in pathwise.RULES}
    assert by["supervised"] == by["right"] != by["loss"] == by["gumbel"]


def test_train_sees_newly_augmented_images_in_each_recording(tmp_path, monkeypatch):
    seen = []

    def noted(network, images, labels):
        seen.append(images)
        return record(network, images, labels)

    monkeypatch.setattr(pathwise, "record", noted)
    train(*_run(tmp_path, recordings=2))
    assert len(seen) == 2
    assert not torch.equal(seen[0].sort(dim=0).values, seen[1].sort(dim=0).values)


def test_train_records_images_as_large_as_served_and_not_pasted(tmp_path, monkeypatch):
    seen = []

    def noted(network, images, labels):
        seen.append((images.shape[-1], labels.ndim))
        return record(network, images, labels)

    monkeypatch.setattr(pathwise, "record", noted)
    run, network = _run(tmp_path)
    settings = replace(run.config.supernet, crop=0.5, crop_size=8, cutmix=1.0)
    train(replace(run, config=replace(run.config, supernet=settings)), network)
    assert set(seen) == {(12, 1)}


def test_train_done_stage_is_not_learnt_again(tmp_path):
    run, network = _run(tmp_path)
    train(run, network)
    again, other = _run(tmp_path, seed=1)
    train(again, other)
    assert all(_same(other.agent, _state(network.agent)).values())
    assert len(read_log(tmp_path / LOG)) == 2


def test_train_killed_after_recording_does_not_record_again(tmp_path, monkeypatch):
    run, network = _run(tmp_path)
    train(run, network)
    run.checkpoints.remove("agent")
    monkeypatch.setattr(pathwise, "record", None)
    again, other = _run(tmp_path)
    train(again, other)
    assert all(_same(other.agent, _state(network.agent)).values())


@pytest.mark.parametrize("epochs", [0, 1])
def test_train_answers_are_numbers_however_short_it_learns(tmp_path, epochs):
    run, network = _run(tmp_path, epochs=epochs)
    train(run, network)
    for look in (0, 1):
        seen = network.agent.seen(*network.look(torch.randn(5, 3, 12, 12), look))
        assert network.agent(look, seen, torch.rand(5)).isfinite().all()


# What the answer before counts


def test_best_blend_is_what_leaves_most_right():
    labels = torch.zeros(3, dtype=torch.int64)
    # The second path is right where it stands alone; the first would mislead it.
    alone = torch.tensor([[[0.0, 9.0], [1.0, 0.0]]]).expand(3, 2, 2)
    assert best_blend(alone, labels) == 0
    # It is wrong where it stands alone, and the first puts it right from a quarter on.
    together = torch.tensor([[[3.0, 0.0], [0.0, 1.0]]]).expand(3, 2, 2)
    assert best_blend(together, labels) == pytest.approx(1 / 3)
    # Where all are level, the least.
    assert best_blend(torch.eye(2)[None, :1].expand(3, 2, 2), labels) == 0


@pytest.mark.parametrize(
    ("views", "asked", "found"), [("both", None, 1 / 6), ("both", 0.2, 0.2), ("image", None, 0)]
)
def test_train_blends_as_held_out_images_say_or_as_asked(
    tmp_path, monkeypatch, views, asked, found
):
    monkeypatch.setattr(pathwise, "best_blend", lambda logits, labels: 1 / 6)
    run, network = _run(tmp_path, views=views, blend=asked, epochs=1)
    network.agent.config = replace(network.agent.config, blend=asked or 0)
    train(run, network)
    assert network.agent.config.blend == found
    again = _run(tmp_path, views=views, blend=asked, epochs=1)[1]
    train(run, again)  # from the checkpoint
    assert again.agent.config == network.agent.config
