from __future__ import annotations

import numpy as np
import pytest
import torch

from models.agent import Agent
from models.compute import mac_table, price
from models.config import PENALTY_MIDPOINT, AgentConfig
from models.network import Greedy
from tests.models.support import tiny_backbone

BACKBONE = tiny_backbone()
FORMS = ["priced", "paper"]
N = 6


def make_agent(form="priced"):
    torch.manual_seed(0)
    agent = Agent(BACKBONE, AgentConfig(form, encoding=8, hidden=7))
    return agent.requires_grad_(False)


def inputs(layer, seed=0):
    """Pooled features, widths before and penalties, different for each of N images."""
    generator = torch.Generator().manual_seed(seed)
    pooled = torch.rand(N, BACKBONE.layers[layer].in_channels, generator=generator)
    before = torch.randint(1, BACKBONE.groups + 1, (N,), generator=generator)
    return pooled, before, torch.rand(N, generator=generator)


class Recording(Greedy):
    """Keeps the Q-values that it chose by."""

    values: list

    def pick(self, values, allowed):
        self.values = [*getattr(self, "values", []), values]
        return super().pick(values, allowed)


def valued(agent, pooled_by_layer, before):
    """Q-values (N, k) of each layer, as a network would ask for them."""
    n = len(before)
    greedy = Recording(
        agent, mac_table(BACKBONE, agent.config), torch.full((n,), 0.3), torch.ones(n)
    )
    for layer, pooled in enumerate(pooled_by_layer, start=1):
        greedy(layer, pooled, before)
    return greedy.values


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def written_out(agent, layer, pooled, before, penalty, hidden):
    """One decision in numpy, gate by gate, as an engine computes it."""
    w = {name: value.double().numpy() for name, value in agent.state_dict().items()}
    features = w[f"encoder.{layer}.weight"] @ pooled + w[f"encoder.{layer}.bias"]
    features = features.clip(0)
    if agent.config.form == "priced":
        features = np.append(features, penalty / (penalty + PENALTY_MIDPOINT))
    r_in, z_in, n_in = np.split(w["cell.weight_ih"] @ features + w["cell.bias_ih"], 3)
    r_hid, z_hid, n_hid = np.split(w["cell.weight_hh"] @ hidden + w["cell.bias_hh"], 3)
    reset, update = sigmoid(r_in + r_hid), sigmoid(z_in + z_hid)
    new = np.tanh(n_in + reset * n_hid)
    hidden = (1 - update) * new + update * hidden
    prices = price(mac_table(BACKBONE, agent.config), agent.config.form)[layer, before - 1]
    return w["decoder.weight"] @ hidden + w["decoder.bias"] - penalty * prices, hidden


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("layer", [1, 2, 4])
def test_agent_equals_its_arithmetic_written_out_image_by_image(form, layer):
    agent, (pooled, before, penalty) = make_agent(form), inputs(layer)
    hidden = torch.randn(N, 7)
    values, after = agent(layer, pooled, before, penalty, hidden)
    for n in range(N):
        image = pooled[n].numpy(), int(before[n]), float(penalty[n]), hidden[n].numpy()
        expected_values, expected_hidden = written_out(agent, layer, *image)
        np.testing.assert_allclose(values[n], expected_values, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(after[n], expected_hidden, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("form", FORMS)
def test_agent_values_of_a_later_layer_depend_on_features_of_an_earlier_one(form):
    agent, before = make_agent(form), torch.tensor([3, 3])
    early, late = torch.randn(1, 6).repeat(2, 1), torch.randn(1, 9).repeat(2, 1)
    same = valued(agent, [early, late, late], before)
    assert all(torch.equal(values[0], values[1]) for values in same)
    early[1] += 1
    for values in valued(agent, [early, late, late], before):
        assert (values[0] != values[1]).all()


@pytest.mark.parametrize("form", FORMS)
def test_agent_values_of_permuted_images_are_permuted(form):
    agent, (pooled, before, penalty) = make_agent(form), inputs(2)
    hidden, order = torch.randn(N, 7), torch.randperm(N)
    values, after = agent(2, pooled, before, penalty, hidden)
    again = agent(2, pooled[order], before[order], penalty[order], hidden[order])
    assert len(values.unique(dim=0)) == N
    torch.testing.assert_close(again, (values[order], after[order]))


def test_agent_values_are_not_bounded():
    agent, (pooled, before, _) = make_agent(), inputs(1)
    small = agent(1, pooled, before, torch.zeros(N), agent.start(N))[0]
    for parameter in agent.decoder.parameters():
        parameter.mul_(-1e6)
    large = agent(1, pooled, before, torch.zeros(N), agent.start(N))[0]
    torch.testing.assert_close(large, small * -1e6)
    assert large.abs().max() > 1e4


def test_priced_agent_takes_the_penalty_as_an_input():
    agent, (pooled, before, _) = make_agent("priced"), inputs(1)
    hidden = [agent(1, pooled, before, torch.full((N,), p), agent.start(N))[1] for p in (0, 0.5)]
    assert (hidden[0] != hidden[1]).any()


def test_priced_agent_of_an_endless_penalty_stays_finite():
    agent, (pooled, before, _) = make_agent("priced"), inputs(1)
    _, hidden = agent(1, pooled, before, torch.full((N,), 1e9), agent.start(N))
    assert hidden.isfinite().all()


def test_paper_agent_takes_a_further_penalty_off_its_values_per_group():
    agent, (pooled, before, _) = make_agent("paper"), inputs(4)
    free, hidden = agent(4, pooled, before, torch.zeros(N), agent.start(N))
    fined, same = agent(4, pooled, before, torch.full((N,), 0.5), agent.start(N))
    assert torch.equal(hidden, same)
    torch.testing.assert_close(free - fined, torch.tensor([0.5, 1.0, 1.5]).expand(N, 3))


def test_agent_starts_from_zeros():
    start = make_agent().start(3)
    assert start.shape == (3, 7)
    assert not start.any()


def test_agent_has_no_encoder_for_the_first_layer():
    assert list(make_agent().encoder) == ["1", "2", "3", "4"]


def test_agent_keeps_prices_out_of_its_state():
    assert "price" not in make_agent().state_dict()


def test_agent_config_of_an_unknown_form_raises():
    with pytest.raises(ValueError, match="'free' is unknown: choose 'priced' or 'paper'"):
        AgentConfig("free")


@pytest.mark.parametrize(("form", "inputs"), [("priced", 9), ("paper", 8)])
def test_agent_config_cell_inputs_count_the_penalty_where_it_is_one(form, inputs):
    assert AgentConfig(form, encoding=8).cell_inputs == inputs
