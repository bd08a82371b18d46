"""Tests of the returns from which training/pathwise.py learns, worked out by hand."""

import pytest
import torch

from models.agent import PathAgent
from models.config import AgentConfig
from tests.training.support import chain, features_of, of_each
from training.pathwise import q_error


@torch.no_grad()
def _expecting(first, second):
    """An agent of three paths that always expects these gains, whatever it sees."""
    agent = PathAgent(
        chain(2, 4, 4), AgentConfig("paths", hidden=2, paths=((1, 1), (2, 2), (4, 4)))
    )
    for parameter in agent.parameters():
        parameter.zero_()
    agent.layers(0)[-1].bias.copy_(torch.tensor(first))
    agent.layers(1)[-1].bias.copy_(torch.tensor(second))
    agent.price.copy_(torch.tensor([0.1, 0.25, 1.0]))
    return agent


def _nothing(agent, count):
    """What is seen after the first path, and after the second, which the first was before."""
    return [torch.zeros(count, 1, features_of(agent, look)) for look in (0, 1)]


def _error(agent, worth, penalty):
    seen = _nothing(agent, len(worth))
    return q_error(agent, seen, of_each(torch.tensor(worth)), torch.tensor(penalty)).item()


# The first image is right at the last path only, the second at the second only.
WORTH = [[0.0, 0.0, 1.0], [0.0, 1.0, 0.0]]


def test_q_error_returns_follow_the_agents_own_choice_to_go_on():
    # After the second path it expects 0.8, which is more than 0.5 · 1.0: it goes on, with either.
    agent = _expecting([0.3, 0.4], [0.8])
    second = ((0.8 - 1) ** 2 + (0.8 + 1) ** 2) / 2
    # What follows the second path is then 1 - 0.5 and -1 - 0.5: not what was expected, 0.3, nor
    # for the second image the best, 0, that it would have got by stopping.
    returns = [(0 + 0.5, 1), (1 - 1.5, 0)]
    first = sum((0.3 - a) ** 2 + (0.4 - b) ** 2 for a, b in returns) / 4
    assert _error(agent, WORTH, [0.5, 0.5]) == pytest.approx(first + second, rel=1e-5)


def test_q_error_returns_follow_the_agents_own_choice_to_stop():
    # 0.3 is less than 0.5 · 1.0: it stops after the second path, though with the first image it
    # would have gained by going on.
    agent = _expecting([0.3, 0.4], [0.3])
    second = ((0.3 - 1) ** 2 + (0.3 + 1) ** 2) / 2
    first = sum((0.3 - a) ** 2 + (0.4 - b) ** 2 for a, b in [(0, 1), (1, 0)]) / 4
    assert _error(agent, WORTH, [0.5, 0.5]) == pytest.approx(first + second, rel=1e-5)


def test_q_error_knows_what_the_last_path_is_worth_after_each_other():
    # The last path is right only after the second; the agent goes on there.
    agent = _expecting([0.3, 0.4], [0.8])
    worth = [torch.tensor([[0.0]]), torch.tensor([[0.0]]), torch.tensor([[0.0, 1.0]])]
    found = q_error(agent, _nothing(agent, 1), worth, torch.tensor([0.5])).item()
    first = ((0.3 - (0 + 1 - 0.5)) ** 2 + (0.4 - 0) ** 2) / 2
    assert found == pytest.approx(first + (0.8 - 1) ** 2, rel=1e-5)


def test_q_error_charges_each_image_its_own_penalty():
    # Of 0.2 the first image goes on, of 0.9 the second stops.
    agent = _expecting([0.3, 0.4], [0.8])
    second = ((0.8 - 1) ** 2 + (0.8 + 1) ** 2) / 2
    returns = [(0 + 1 - 0.2, 1), (1, 0)]
    first = sum((0.3 - a) ** 2 + (0.4 - b) ** 2 for a, b in returns) / 4
    assert _error(agent, WORTH, [0.2, 0.9]) == pytest.approx(first + second, rel=1e-5)


def test_q_error_of_estimates_without_truth_promises_nothing():
    """Noise about which the agent is sure gains nothing on average: a maximum of it would."""
    torch.manual_seed(0)
    worth = torch.zeros(20_000, 3)
    worth[:, 2] = torch.randn(20_000)
    agent = _expecting([0.0, 0.0], [0.01])
    agent.requires_grad_(True)
    q_error(agent, _nothing(agent, 20_000), of_each(worth), torch.zeros(20_000)).backward()
    # The gradient of the expectations, of which there are two: their errors' mean, about zero.
    assert agent.layers(0)[-1].bias.grad.abs().max() < 0.03


def test_q_error_teaches_only_what_the_agent_expects_and_not_what_follows():
    agent = _expecting([0.3, 0.4], [0.8]).requires_grad_(True)
    worth = of_each(torch.tensor(WORTH))
    q_error(agent, _nothing(agent, 2), worth, torch.tensor([0.5, 0.5])).backward()
    # Twice the error of each, over two images and as many paths: the returns are held fast.
    found = torch.cat([agent.layers(look)[-1].bias.grad for look in (0, 1)]).tolist()
    assert found == pytest.approx([0.3 - 0.0, 0.4 - 0.5, 2 * (0.8 - 0.0)], abs=1e-5)
