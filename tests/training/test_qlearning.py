"""Tests of training/qlearning.py."""

from contextlib import nullcontext
from itertools import product
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.compute import path_macs, step_price
from models.config import AgentConfig
from models.network import Network
from tests.models.support import make_backbone, random_images, random_paths, tiny_backbone
from tests.training.support import chain, lively_network
from training.batches import generator
from training.qlearning import (
    Episodes,
    Explorer,
    bellman_loss,
    draw_penalty,
    minibatches,
    q_values,
    record,
    rewards,
)


@pytest.fixture
def network():
    return lively_network()


@pytest.fixture
def images():
    torch.manual_seed(7)
    return torch.randn(40, 3, 6, 6) * torch.linspace(0.2, 3, 40)[:, None, None, None]


def _uncapped(penalty):
    return torch.full((len(penalty),), 2.0, dtype=torch.float64)


def _episodes(widths, loss, baseline, pooled=None):
    widths = torch.tensor(widths)
    pooled = pooled or [torch.zeros(len(widths), 4)] * (widths.shape[1] - 1)
    return Episodes(pooled, widths, torch.tensor(loss), torch.tensor(baseline))


# Values


@pytest.mark.parametrize("backbone", [chain(5, 8, 4), tiny_backbone()], ids=["chain", "blocks"])
def test_q_values_along_the_agents_own_path_are_those_it_chose_by(backbone):
    """State carried, each row by itself, widths before and penalty known, as in serving."""
    network, penalty = lively_network(backbone), draw_penalty(40, 0.05, 5.0, generator(1))
    with torch.no_grad():
        _, trace = network.by_policy(random_images(backbone, 40), penalty, _uncapped(penalty))
        zeros = torch.zeros(40)
        episodes = Episodes(trace.seen, trace.widths, zeros, zeros)
        values = q_values(network.agent, episodes, penalty)
    assert len(trace.widths.unique(dim=0)) >= 8  # or else the test would see nothing
    assert torch.equal(values.argmax(dim=2) + 1, trace.widths[:, network.agent.layers])


def test_q_values_of_a_row_do_not_hang_on_the_other_rows(network, images):
    penalty = draw_penalty(40, 0.05, 5.0, generator(1))
    with torch.no_grad():
        _, trace = network.by_policy(images, penalty, _uncapped(penalty))
        episodes = Episodes(trace.seen, trace.widths, torch.zeros(40), torch.zeros(40))
        batch = q_values(network.agent, episodes, penalty)
        for row in (0, 17, 39):
            one = q_values(network.agent, episodes[torch.tensor([row])], penalty[row : row + 1])
            torch.testing.assert_close(one[0], batch[row])
    assert batch.std(dim=0).min() > 0.01


def test_q_values_remember_the_layers_before(network):
    pooled = [torch.zeros(2, 8) for _ in range(4)]
    pooled[0][1] = 1.0  # the two images differ before the first decision only
    episodes = _episodes([[4, 2, 2, 2, 2]] * 2, [0.0, 0.0], [0.0, 0.0], pooled)
    values = q_values(network.agent, episodes, torch.ones(2))
    assert ((values[0] - values[1]).abs().amax(dim=1) > 1e-3).all()


def test_q_values_are_not_bounded(network):
    episodes = _episodes([[4, 1, 1, 1, 1]], [0.0], [0.0], [torch.zeros(1, 8)] * 4)
    for bias in (-100.0, 100.0):
        nn.init.constant_(network.agent.decoder.bias, bias)
        values = q_values(network.agent, episodes, torch.zeros(1))
        assert (values - bias).abs().max() < 50


# Rewards


def test_rewards_priced_charge_macs_by_input_and_output_width():
    network = Network(chain(3, 4, 2), AgentConfig())
    prices = torch.from_numpy(step_price(network.table, "priced"))
    episodes = _episodes(
        [[2, 1, 1], [2, 1, 2], [2, 2, 1]], [0.5, 0.7, 0.2], [0.1, 0.9, 0.2]
    )  # fmt: skip
    penalty = torch.tensor([1.0, 2.0, 0.5])
    # Per pixel and tap: 3·4 MACs, then 4 channels at width 2 and 2 at width 1; the head 4·3.
    full = (3 * 4 + 4 * 4 + 4 * 4) * 9 * 36 + 4 * 3
    layer = {pair: 9 * 36 * pair[0] * pair[1] / full for pair in product((2, 4), repeat=2)}
    head = {channels: channels * 3 / full for channels in (2, 4)}
    expected = [
        [-1.0 * layer[4, 2], -1.0 * (layer[2, 2] + head[2]) + 0.1 - 0.5],
        [-2.0 * layer[4, 2], -2.0 * (layer[2, 4] + head[4]) + 0.9 - 0.7],
        [-0.5 * layer[4, 4], -0.5 * (layer[4, 2] + head[2]) + 0.0],
    ]
    found = rewards(network.agent, episodes, penalty, prices)
    torch.testing.assert_close(found, torch.tensor(expected))


@pytest.mark.parametrize("name", ["tiny", "stream", "resnet20", "resnet18"])
def test_rewards_priced_of_a_path_sum_to_what_it_costs_and_gains(name):
    """Tied layers, projections and the end are all paid for, each once."""
    network = Network(make_backbone(name))
    widths, decided = random_paths(network.backbone, 12, whole=True), network.table.decisions
    pooled = [torch.zeros(12, 1)] * len(decided)
    loss, baseline, penalty = torch.rand(3, 12)
    prices = torch.from_numpy(step_price(network.table, "priced"))
    found = rewards(network.agent, Episodes(pooled, widths, loss, baseline), penalty, prices)
    macs = torch.from_numpy(path_macs(widths.numpy(), network.table, agent=False))
    share = (macs - network.table.start).float() / network.table.full
    assert found.shape == (12, len(decided))
    torch.testing.assert_close(found.sum(1), baseline - loss - penalty * share)


def test_rewards_paper_charge_groups_and_the_whole_loss():
    network = Network(chain(3, 4, 2), AgentConfig("paper"))
    prices = torch.from_numpy(step_price(network.table, "paper"))
    episodes = _episodes([[2, 1, 1], [2, 2, 1]], [0.5, 0.7], [0.1, 0.9])
    found = rewards(network.agent, episodes, torch.tensor([0.1, 0.1]), prices)
    torch.testing.assert_close(found, torch.tensor([[-0.1, -0.1 - 0.5], [-0.2, -0.1 - 0.7]]))


# The Bellman error


class Known(nn.Module):
    """An agent whose values (L - 1, k) are given, the same for all images."""

    def __init__(self, values, form):
        super().__init__()
        self.values = nn.Parameter(torch.tensor(values))
        self.config, self.layers = SimpleNamespace(form=form), [1, 2]
        self.told = None

    def start(self, images):
        return torch.zeros(images, 1)

    def forward(self, layer, pooled, earlier, before, penalty, hidden):
        self.told = penalty
        return self.values[layer - 1].expand(len(pooled), -1), hidden


# Two decisions between two widths. The agent prefers width 2 at the second, its target network 1.
AGENT, TARGET = [[0.3, 0.4], [1.0, 2.0]], [[7.0, 8.0], [50.0, 10.0]]
# By layer, and the widths two before, one before and of it.
PRICES = torch.tensor([[0.0] * 8, [0.9] * 6 + [0.3, 0.4], [0.9] * 4 + [0.5, 0.6, 0.7, 0.8]])
PRICES = PRICES.reshape(3, 2, 2, 2)


@pytest.mark.parametrize(
    ("form", "ending"), [("priced", 5.0 - 3.0), ("paper", -3.0)], ids=["priced", "paper"]
)
def test_bellman_loss_equals_a_hand_computed_one(form, ending):
    agent, target = Known(AGENT, form), Known(TARGET, form)
    episodes = _episodes([[2, 1, 2]], [3.0], [5.0])
    loss = bellman_loss(agent, target, episodes, torch.tensor([2.0]), PRICES)
    # The next action is the agent's favourite, width 2, worth 10 to the target network.
    first = 0.3 - (-2 * 0.3 + 10.0)
    # After the last action there is nothing: no value is added.
    last = 2.0 - (-2 * 0.6 + ending)
    assert loss.item() == pytest.approx((first**2 + last**2) / 2)


def test_bellman_loss_of_each_image_counts_its_own_loss():
    agent, target = Known(AGENT, "priced"), Known(TARGET, "priced")
    together = _episodes([[2, 1, 2], [2, 2, 1]], [3.0, 0.5], [5.0, 0.1])
    penalty = torch.tensor([2.0, 0.3])
    rows = [torch.tensor([0]), torch.tensor([1])]
    apart = [
        bellman_loss(agent, target, together[row], penalty[row], PRICES).item() for row in rows
    ]
    loss = bellman_loss(agent, target, together, penalty, PRICES).item()
    assert loss == pytest.approx(sum(apart) / 2)


def test_bellman_loss_moves_the_taken_values_only_and_not_the_target_network():
    agent, target = Known(AGENT, "priced"), Known(TARGET, "priced")
    bellman_loss(
        agent, target, _episodes([[2, 1, 2]], [3.0], [5.0]), torch.ones(1), PRICES
    ).backward()
    assert target.values.grad is None
    assert (agent.values.grad != 0).tolist() == [[True, False], [False, True]]


@pytest.mark.parametrize(("form", "told"), [("priced", 2.0), ("paper", 0.0)])
def test_bellman_loss_tells_only_the_priced_agent_its_penalty(form, told):
    agent, target = Known(AGENT, form), Known(TARGET, form)
    bellman_loss(agent, target, _episodes([[2, 1, 2]], [3.0], [5.0]), torch.tensor([2.0]), PRICES)
    assert agent.told.tolist() == target.told.tolist() == [told]


# Recording


def _record(network, images, labels, random_share, epsilon, ways=2, penalty=0.5):
    return record(
        network,
        images,
        labels,
        torch.full((ways * len(images),), penalty),
        ways=ways,
        random_share=random_share,
        epsilon=epsilon,
        generator=generator(3),
        autocast=nullcontext(),
    )


def test_record_gives_each_image_the_loss_of_its_own_path(network, images):
    labels = torch.arange(40) % 3
    episodes = _record(network, images, labels, 0.5, 0.2, ways=3)
    assert len(episodes) == 120
    with torch.no_grad():
        logits = network.along(images.repeat(3, 1, 1, 1), episodes.widths)
        full = network(images, [4] * 5)
    loss = F.cross_entropy(logits, labels.repeat(3), reduction="none")
    torch.testing.assert_close(episodes.loss, loss)
    torch.testing.assert_close(
        episodes.baseline, F.cross_entropy(full, labels, reduction="none").repeat(3)
    )
    assert not torch.equal(episodes.widths[:40], episodes.widths[40:80])


def test_record_keeps_what_the_agent_saw(network, images):
    episodes = _record(network, images, torch.zeros(40, dtype=torch.long), 0.0, 0.0, ways=1)
    with torch.no_grad():
        _, trace = network.by_policy(images, torch.full((40,), 0.5), _uncapped(torch.ones(40)))
    assert torch.equal(episodes.widths, trace.widths)
    for kept, seen in zip(episodes.pooled, trace.seen, strict=True):
        torch.testing.assert_close(kept.float(), seen, atol=1e-3, rtol=1e-3)


def test_record_tells_the_agent_each_rows_penalty(network, images):
    labels = torch.zeros(20, dtype=torch.long)
    penalty = torch.tensor([0.0] * 20 + [50.0] * 20)
    episodes = record(
        network, images[20:], labels, penalty, ways=2, random_share=0.0, epsilon=0.0,
        generator=generator(0), autocast=nullcontext(),
    )  # fmt: skip
    costs = path_macs(episodes.widths.numpy(), network.table, agent=False)
    assert costs[20:].max() < costs[:20].mean()


@pytest.mark.parametrize(("random_share", "epsilon"), [(1.0, 0.0), (0.0, 1.0)])
def test_explorer_random_takes_every_width_whatever_the_agent_values(
    network, images, random_share, epsilon
):
    episodes = _record(
        network, images, torch.zeros(40, dtype=torch.long), random_share, epsilon, penalty=1e6
    )
    assert (episodes.widths[:, 0] == 4).all()
    for layer in range(1, 5):
        assert episodes.widths[:, layer].unique().tolist() == [1, 2, 3, 4]


def test_explorer_leaves_the_agent_the_share_that_it_should(network):
    nn.init.zeros_(network.agent.decoder.weight)
    network.agent.decoder.bias.data = torch.tensor([0.0, 0.0, 1.0, 0.0])  # always width 3
    for random_share, epsilon in ((0.0, 0.4), (0.6, 0.0)):
        explorer = Explorer(
            network, torch.zeros(4000), random_share=random_share, epsilon=epsilon,
            generator=generator(1),
        )  # fmt: skip
        whole = torch.full((4000,), 4)
        width = explorer(1, torch.zeros(4000, 8), whole, whole)
        own = ((width == 3) & ~explorer.scripted).float().mean().item()
        wanted = (1 - random_share) * (1 - epsilon * 3 / 4)
        assert own == pytest.approx(wanted, abs=0.03)


# Small parts


def test_draw_penalty_is_even_in_its_logarithm():
    penalty = draw_penalty(10_000, 0.01, 100.0, generator(0))
    assert penalty.min() >= 0.01
    assert penalty.max() <= 100.0
    shares = torch.histc(penalty.log10(), 4, -2, 2) / len(penalty)
    torch.testing.assert_close(shares, torch.full((4,), 0.25), atol=0.02, rtol=0)


def test_minibatches_take_each_episode_once_but_the_rest():
    rows = list(minibatches(23, 5, generator(0)))
    assert [len(r) for r in rows] == [5, 5, 5, 5]
    assert len(set(torch.cat(rows).tolist())) == 20
    again = list(minibatches(23, 5, generator(1)))
    assert not torch.equal(torch.cat(rows), torch.cat(again))


def test_episodes_concatenate_keeps_rows_together():
    one = _episodes([[2, 1, 1]], [0.1], [1.0], [torch.full((1, 4), 1.0), torch.full((1, 4), 2.0)])
    two = _episodes([[2, 2, 1]], [0.2], [2.0], [torch.full((1, 4), 3.0), torch.full((1, 4), 4.0)])
    both = Episodes.concatenate([one, two])
    second = both[torch.tensor([1])]
    assert second.widths.tolist() == [[2, 2, 1]]
    assert (second.loss.item(), second.baseline.item()) == pytest.approx((0.2, 2.0))
    assert [p[0, 0].item() for p in second.pooled] == [3.0, 4.0]
