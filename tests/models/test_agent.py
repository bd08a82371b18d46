from __future__ import annotations

import numpy as np
import pytest
import torch

from models.agent import LayerAgent, PathAgent
from models.compute import mac_table, path_macs, path_price, price
from models.config import GLANCE_LEAST_LOG, PENALTY_MIDPOINT, AgentConfig
from models.network import Greedy
from tests.models.support import agent_config, tiny_backbone

BACKBONE = tiny_backbone()
LAYERWISE = ["priced", "paper"]
N = 6


def make_layer_agent(form="priced"):
    torch.manual_seed(0)
    return LayerAgent(BACKBONE, AgentConfig(form, encoding=8, hidden=7)).requires_grad_(False)


def make_path_agent():
    torch.manual_seed(0)
    return PathAgent(BACKBONE, agent_config("paths", BACKBONE)).requires_grad_(False)


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
    seen = PathAgent.seen(logits, pooled)
    shares, top, logs, top_logs, means = seen.split([7, 5, 7, 5, 4], dim=1)
    torch.testing.assert_close(shares, logits.softmax(dim=1))
    torch.testing.assert_close(top, shares.sort(descending=True).values[:, :5])
    torch.testing.assert_close(logs, shares.log())
    torch.testing.assert_close(top_logs, top.log())
    assert torch.equal(means, pooled)


def test_seen_of_fewer_classes_than_are_sorted_sorts_them_all():
    assert PathAgent.seen(torch.randn(N, 3), torch.rand(N, 4)).shape == (N, 2 * (3 + 3) + 4)


def test_seen_of_a_sure_answer_has_finite_logarithms():
    logits = torch.tensor([[1e4, 0.0, -1e4]])
    seen = PathAgent.seen(logits, torch.zeros(1, 2))
    assert seen[0, 6:12].tolist() == [0, GLANCE_LEAST_LOG, GLANCE_LEAST_LOG] * 2
    assert seen[0, :3].tolist() == pytest.approx([1, 0, 0], abs=1e-4)


def test_path_agent_equals_its_arithmetic_written_out():
    agent = make_path_agent()
    w, seen = numpy_weights(agent), torch.randn(N, agent.hidden[0].in_features)
    x = seen.double().numpy()
    for layer in ("hidden.0", "hidden.1"):
        x = (x @ w[f"{layer}.weight"].T + w[f"{layer}.bias"]).clip(0)
    expected = x @ w["gain.weight"].T + w["gain.bias"]
    assert expected.shape == (N, 4)
    np.testing.assert_allclose(agent(seen), expected, rtol=1e-4, atol=1e-5)


def test_path_agent_gradient_of_one_path_reaches_its_own_row_and_all_hidden_layers():
    agent = make_path_agent().requires_grad_(True)
    seen = torch.randn(N, agent.hidden[0].in_features, requires_grad=True)
    agent(seen)[:, 2].sum().backward()
    assert agent.gain.bias.grad.tolist() == [0, 0, N, 0]
    assert not agent.gain.weight.grad[[0, 1, 3]].any()
    assert all(layer.weight.grad.any() for layer in agent.hidden)
    assert seen.grad.any()


def test_path_agent_values_are_gains_less_the_price_of_going_on():
    agent = make_path_agent()
    gain, penalty = torch.randn(N, 4), torch.linspace(-0.5, 2, N)
    values = agent.values(gain, penalty)
    assert not values[:, 0].any()
    paths, table = np.array(agent.config.paths), mac_table(BACKBONE, agent.config)
    prices = torch.from_numpy(path_price(table, paths)[1:])
    torch.testing.assert_close(values[:, 1:], gain - penalty[:, None] * prices)


def test_path_agent_chooses_each_image_by_its_own_gain_and_penalty():
    agent = make_path_agent()
    gain = torch.full((5, 4), -1.0)
    gain[1:, 1], gain[2:, 3] = 0.1, 0.2
    penalty = torch.tensor([0.0, 0.0, 0.0, 1e3, -1e3])
    chosen = agent.choose(gain, penalty, torch.full((5,), 2.0).double())
    assert chosen.tolist() == [0, 2, 4, 0, 4]


def test_path_agent_goes_with_the_glance_where_nothing_is_gained():
    chosen = make_path_agent().choose(
        torch.zeros(N, 4), torch.zeros(N), torch.full((N,), 2.0).double()
    )
    assert not chosen.any()


def test_path_agent_under_a_cap_chooses_the_best_of_what_it_allows():
    agent = make_path_agent()
    paths, table = np.array(agent.config.paths), mac_table(BACKBONE, agent.config)
    macs = path_macs(paths, table, agent=True)
    gain = torch.randn(200, 4, generator=torch.Generator().manual_seed(0)) + 1
    caps = np.resize(np.concatenate([(macs + 0.5) / table.full, (macs - 0.5) / table.full]), 200)
    penalty = torch.zeros(200)
    chosen = agent.choose(gain, penalty, torch.from_numpy(caps)).tolist()
    for values, cap, number in zip(agent.values(gain, penalty).tolist(), caps, chosen, strict=True):
        allowed = [i for i in range(5) if i == 0 or macs[i] <= cap * table.full]
        assert number == max(allowed, key=lambda i: values[i])
    assert set(chosen) == set(range(5))
