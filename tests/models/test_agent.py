from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from models.agent import LayerAgent, PathAgent
from models.compute import mac_table, path_macs, price
from models.config import LOOK_LEAST_LOG, PENALTY_MIDPOINT, AgentConfig
from models.network import Greedy
from tests.models.support import agent_config, tiny_backbone

BACKBONE = tiny_backbone()
LAYERWISE = ["priced", "paper"]
N = 6


def make_layer_agent(form="priced"):
    torch.manual_seed(0)
    return LayerAgent(BACKBONE, AgentConfig(form, encoding=8, hidden=7)).requires_grad_(False)


def make_path_agent(looks=0, sees="maps"):
    """An agent of five paths."""
    torch.manual_seed(0)
    config = replace(agent_config("paths", BACKBONE, looks=looks), sees=sees)
    return PathAgent(BACKBONE, config).requires_grad_(False)


def seen_after(agent, look):
    """Random features (N, F) of the path after which the agent decides, its own maps' last."""
    channels = BACKBONE.layers[-1].out_channels * agent.config.paths[look][-1] // BACKBONE.groups
    generator = torch.Generator().manual_seed(look)
    return torch.randn(N, 2 * (3 + 3) + channels, generator=generator)


def spent_on(agent):
    """MACs of each of the agent's paths and of the decision after it, from its layers."""
    macs = path_macs(np.array(agent.config.paths), mac_table(BACKBONE, agent.config), agent=False)
    for look, layers in enumerate(agent.looks):
        macs[look] += sum(layer.weight.numel() for layer in layers)
    return macs


def inputs(layer, seed=0):
    """Pooled features, widths two and one before, and penalties, different for each image."""
    generator = torch.Generator().manual_seed(seed)
    pooled = torch.rand(N, BACKBONE.layers[layer].in_channels, generator=generator)
    earlier, before = torch.randint(1, BACKBONE.groups + 1, (2, N), generator=generator)
    return pooled, earlier, before, torch.rand(N, generator=generator)


class Recording(Greedy):
    """Keeps the Q-values that it chose by."""

    values: list

    def pick(self, values, allowed):
        self.values = [*getattr(self, "values", []), values]
        return super().pick(values, allowed)


def valued(agent, pooled_by_layer, before):
    """Q-values (N, k) of each decision, as a network would ask for them."""
    n = len(before)
    greedy = Recording(
        agent, mac_table(BACKBONE, agent.config), torch.full((n,), 0.3), torch.ones(n)
    )
    for layer, pooled in pooled_by_layer.items():
        greedy(layer, pooled, before, before)
    return greedy.values


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def numpy_weights(agent):
    return {name: value.double().numpy() for name, value in agent.state_dict().items()}


def written_out(agent, layer, pooled, earlier, before, penalty, hidden):
    """One decision in numpy, gate by gate, as an engine computes it."""
    w = numpy_weights(agent)
    features = w[f"encoder.{layer}.weight"] @ pooled + w[f"encoder.{layer}.bias"]
    features = features.clip(0)
    if agent.config.form == "priced":
        features = np.append(features, penalty / (penalty + PENALTY_MIDPOINT))
    r_in, z_in, n_in = np.split(w["cell.weight_ih"] @ features + w["cell.bias_ih"], 3)
    r_hid, z_hid, n_hid = np.split(w["cell.weight_hh"] @ hidden + w["cell.bias_hh"], 3)
    reset, update = sigmoid(r_in + r_hid), sigmoid(z_in + z_hid)
    new = np.tanh(n_in + reset * n_hid)
    hidden = (1 - update) * new + update * hidden
    prices = price(mac_table(BACKBONE, agent.config), agent.config.form)
    prices = prices[layer, earlier - 1, before - 1]
    return w["decoder.weight"] @ hidden + w["decoder.bias"] - penalty * prices, hidden


@pytest.mark.parametrize("form", LAYERWISE)
@pytest.mark.parametrize("layer", [1, 2, 3, 5])
def test_layer_agent_equals_its_arithmetic_written_out_image_by_image(form, layer):
    agent, (pooled, earlier, before, penalty) = make_layer_agent(form), inputs(layer)
    hidden = torch.randn(N, 7)
    values, after = agent(layer, pooled, earlier, before, penalty, hidden)
    for n in range(N):
        widths = int(earlier[n]), int(before[n])
        image = pooled[n].numpy(), *widths, float(penalty[n]), hidden[n].numpy()
        expected_values, expected_hidden = written_out(agent, layer, *image)
        np.testing.assert_allclose(values[n], expected_values, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(after[n], expected_hidden, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", LAYERWISE)
def test_layer_agent_values_of_a_later_layer_depend_on_features_of_an_earlier_one(form):
    agent, before = make_layer_agent(form), torch.tensor([3, 3])
    early, late = torch.randn(1, 6).repeat(2, 1), torch.randn(1, 9).repeat(2, 1)
    pooled = {1: early, 2: late, 3: late, 5: late}
    same = valued(agent, pooled, before)
    assert len(same) == 4
    for values in same:
        torch.testing.assert_close(values[0], values[1])
    early[1] += 1
    for values in valued(agent, pooled, before):
        assert ((values[0] - values[1]).abs() > 1e-4).all()


@pytest.mark.parametrize("form", LAYERWISE)
def test_layer_agent_values_of_permuted_images_are_permuted(form):
    agent, (pooled, earlier, before, penalty) = make_layer_agent(form), inputs(2)
    hidden, order = torch.randn(N, 7), torch.randperm(N)
    values, after = agent(2, pooled, earlier, before, penalty, hidden)
    again = agent(2, pooled[order], earlier[order], before[order], penalty[order], hidden[order])
    assert len(values.unique(dim=0)) == N
    torch.testing.assert_close(again, (values[order], after[order]))


def first(agent, penalty):
    """Values and state of a first decision, all at one penalty."""
    pooled, earlier, before, _ = inputs(1)
    return agent(1, pooled, earlier, before, torch.full((N,), penalty), agent.start(N))


def test_layer_agent_values_are_not_bounded():
    agent = make_layer_agent()
    small = first(agent, 0.0)[0]
    for parameter in agent.decoder.parameters():
        parameter.mul_(-1e6)
    large = first(agent, 0.0)[0]
    torch.testing.assert_close(large, small * -1e6)
    assert large.abs().max() > 1e4


def test_priced_agent_takes_the_penalty_as_an_input():
    agent = make_layer_agent("priced")
    assert (first(agent, 0.0)[1] != first(agent, 0.5)[1]).any()


def test_priced_agent_is_told_no_penalty_below_zero_yet_charges_it():
    agent, (_, earlier, before, _) = make_layer_agent("priced"), inputs(1)
    (free, told), (paid, same) = first(agent, 0.0), first(agent, -0.5)
    assert torch.equal(told, same)
    torch.testing.assert_close(paid - free, 0.5 * agent.price[1, earlier - 1, before - 1])


def test_priced_agent_of_an_endless_penalty_stays_finite():
    assert first(make_layer_agent("priced"), 1e9)[1].isfinite().all()


def test_paper_agent_takes_a_further_penalty_off_its_values_per_group():
    agent, (pooled, earlier, before, _) = make_layer_agent("paper"), inputs(5)
    free, hidden = agent(5, pooled, earlier, before, torch.zeros(N), agent.start(N))
    fined, same = agent(5, pooled, earlier, before, torch.full((N,), 0.5), agent.start(N))
    assert torch.equal(hidden, same)
    torch.testing.assert_close(free - fined, torch.tensor([0.5, 1.0, 1.5]).expand(N, 3))


def test_layer_agent_starts_from_zeros():
    start = make_layer_agent().start(3)
    assert start.shape == (3, 7)
    assert not start.any()


def test_layer_agent_has_an_encoder_for_each_decision_only():
    assert list(make_layer_agent().encoder) == ["1", "2", "3", "5"]


def test_layer_agent_gradient_of_one_decision_reaches_its_own_encoder_only():
    agent = make_layer_agent().requires_grad_(True)
    first(agent, 0.1)[0].sum().backward()
    reached = {name for name, value in agent.named_parameters() if value.grad is not None}
    encoders = {name for name in reached if name.startswith("encoder")}
    assert encoders == {"encoder.1.weight", "encoder.1.bias"}
    assert {"cell.weight_ih", "cell.weight_hh", "decoder.weight", "decoder.bias"} < reached
    assert agent.encoder["1"].weight.grad.any()


@pytest.mark.parametrize("make", [make_layer_agent, make_path_agent])
def test_agents_keep_what_follows_from_dimensions_out_of_their_state(make):
    assert not {"price", "paths", "macs"} & make().state_dict().keys()


def test_seen_is_shares_then_logarithms_each_with_the_largest_sorted_then_the_maps_means():
    generator = torch.Generator().manual_seed(0)
    logits, pooled = torch.randn(N, 7, generator=generator), torch.rand(N, 4, generator=generator)
    seen = make_path_agent().seen(logits, pooled)
    shares, top, logs, top_logs, means = seen.split([7, 5, 7, 5, 4], dim=1)
    torch.testing.assert_close(shares, logits.softmax(dim=1))
    torch.testing.assert_close(top, shares.sort(descending=True).values[:, :5])
    torch.testing.assert_close(logs, shares.log())
    torch.testing.assert_close(top_logs, top.log())
    assert torch.equal(means, pooled)


def test_seen_of_the_answer_is_its_two_largest_shares_whatever_their_classes_and_logarithms():
    generator = torch.Generator().manual_seed(0)
    logits, pooled = torch.randn(N, 7, generator=generator), torch.rand(N, 4, generator=generator)
    agent = make_path_agent(sees="answer")
    seen = agent.seen(logits, pooled)
    shares = logits.softmax(dim=1).sort(descending=True).values[:, :2]
    torch.testing.assert_close(seen, torch.cat([shares, shares.log()], dim=1))
    others = agent.seen(logits[:, torch.randperm(7, generator=generator)], pooled + 1)
    torch.testing.assert_close(seen, others)


def test_seen_of_fewer_classes_than_are_sorted_sorts_them_all():
    logits, pooled = torch.randn(N, 3), torch.rand(N, 4)
    assert make_path_agent().seen(logits, pooled).shape == (N, 2 * (3 + 3) + 4)
    assert make_path_agent(sees="answer").seen(logits, pooled).shape == (N, 2 * 2)


def test_seen_of_a_sure_answer_has_finite_logarithms():
    logits = torch.tensor([[1e4, 0.0, -1e4]])
    seen = make_path_agent().seen(logits, torch.zeros(1, 2))
    assert seen[0, 6:12].tolist() == [0, LOOK_LEAST_LOG, LOOK_LEAST_LOG] * 2
    assert seen[0, :3].tolist() == pytest.approx([1, 0, 0], abs=1e-4)


PENALTIES = torch.tensor([-0.5, 0.0, 0.02, 0.2, 3.0, 1e9])


@pytest.mark.parametrize("look", range(4))
def test_path_agent_equals_its_arithmetic_written_out(look):
    agent = make_path_agent()
    w, seen = numpy_weights(agent), seen_after(agent, look)
    told = PENALTIES.double().numpy().clip(0)
    x = np.column_stack([seen.double().numpy(), told / (told + PENALTY_MIDPOINT)])
    for layer in (0, 1):
        x = (x @ w[f"looks.{look}.{layer}.weight"].T + w[f"looks.{look}.{layer}.bias"]).clip(0)
    expected = x @ w[f"looks.{look}.2.weight"].T + w[f"looks.{look}.2.bias"]
    assert expected.shape == (N, 4 - look)
    np.testing.assert_allclose(agent(look, seen, PENALTIES), expected, rtol=1e-4, atol=1e-5)


def test_path_agent_is_told_the_penalty_but_none_below_zero():
    agent, seen = make_path_agent(), seen_after(make_path_agent(), 0)[:1].expand(N, -1)
    gains = agent(0, seen, PENALTIES)
    assert torch.equal(gains[0], gains[1])
    assert len(gains.unique(dim=0)) == N - 1
    assert gains.isfinite().all()


def test_path_agent_gradient_of_one_path_reaches_its_own_row_and_one_decision():
    agent = make_path_agent().requires_grad_(True)
    seen = seen_after(agent, 1).requires_grad_(True)
    agent(1, seen, torch.rand(N))[:, 2].sum().backward()
    *hidden, last = agent.layers(1)
    assert last.bias.grad.tolist() == [0, 0, N]
    assert not last.weight.grad[:2].any()
    assert all(layer.weight.grad.any() for layer in hidden)
    assert seen.grad.any()
    reached = {name for name, value in agent.named_parameters() if value.grad is not None}
    assert {name[:8] for name in reached} == {"looks.1."}


@pytest.mark.parametrize(("looks", "decisions"), [(0, 4), (1, 1), (3, 3), (4, 4), (9, 4)])
def test_path_agent_decides_after_as_many_paths_as_configured_but_never_after_the_last(
    looks, decisions
):
    agent = make_path_agent(looks)
    assert len(agent.looks) == agent.config.deciding == decisions
    assert agent.macs.tolist() == spent_on(agent).tolist()


@pytest.mark.parametrize("look", range(4))
def test_path_agent_values_are_gains_less_the_price_of_going_on(look):
    agent = make_path_agent()
    gain, penalty = torch.randn(N, 4 - look), torch.linspace(-0.5, 2, N)
    values = agent.values(look, gain, penalty)
    assert not values[:, 0].any()
    # Another path costs all its own MACs and the decision after it, whatever was spent before.
    prices = torch.from_numpy(spent_on(agent) / agent.full)[look + 1 :].float()
    torch.testing.assert_close(values[:, 1:], gain - penalty[:, None] * prices)


def test_path_agent_chooses_each_image_by_its_own_gain_and_penalty():
    agent, enough = make_path_agent(), torch.full((5,), 10**9)
    gain = torch.full((5, 4), -1.0)
    gain[1:, 1], gain[2:, 3] = 0.1, 0.2
    penalty = torch.tensor([0.0, 0.0, 0.0, 1e3, -1e3])
    assert agent.choose(0, gain, penalty, enough).tolist() == [0, 2, 4, 0, 4]
    assert agent.choose(2, gain[:, 2:], penalty, enough).tolist() == [2, 2, 4, 2, 4]


@pytest.mark.parametrize("look", range(4))
def test_path_agent_stops_where_nothing_is_gained(look):
    agent, enough = make_path_agent(), torch.full((N,), 10**9)
    chosen = agent.choose(look, torch.zeros(N, 4 - look), torch.zeros(N), enough)
    assert (chosen == look).all()


@pytest.mark.parametrize("look", range(4))
def test_path_agent_chooses_the_best_of_what_is_left_to_spend(look):
    agent = make_path_agent()
    macs = spent_on(agent)
    left = np.resize(np.concatenate([macs[look + 1 :], macs[look + 1 :] - 1, [-5]]), 300)
    gain = torch.randn(300, 4 - look, generator=torch.Generator().manual_seed(0)) + 1
    penalty = torch.zeros(300)
    chosen = agent.choose(look, gain, penalty, torch.from_numpy(left)).tolist()
    values = np.pad(gain.numpy(), ((0, 0), (1 + look, 0)))
    for row, most, number in zip(values, left, chosen, strict=True):
        allowed = [look, *(i for i in range(look + 1, 5) if macs[i] <= most)]
        assert number == max(allowed, key=lambda i: row[i])
    assert set(chosen) == set(range(look, 5))


def test_path_agent_limits_are_shares_of_the_full_macs_and_without_a_cap_more_than_all_paths():
    agent = make_path_agent()
    some, more, most, none = agent.limits(torch.tensor([0.3, 1.5, 1e6, math.inf])).tolist()
    assert (some, more) == (math.floor(0.3 * agent.full), math.floor(1.5 * agent.full))
    assert most == none > spent_on(agent).sum()
