"""Tests of training/checkpoint.py."""

import pytest
import torch
from torch import nn

from training.batches import generator
from training.checkpoint import Checkpoints
from training.errors import CheckpointError


class Run:
    """Gradient descent with momentum and dropout, so that state and random numbers matter."""

    def __init__(self):
        self.model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.5), nn.Linear(8, 1))
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)

    def steps(self, start, stop):
        for step in range(start, stop):
            x = torch.randn(16, 4, generator=generator(0, step))
            self.optimizer.zero_grad()
            self.model(x).square().mean().backward()
            self.optimizer.step()

    def state(self):
        return {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load(self, state):
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])


def _weights(run):
    return nn.utils.parameters_to_vector(run.model.parameters()).detach()


def test_load_resumed_run_equals_an_uninterrupted_one(tmp_path):
    torch.manual_seed(0)
    whole = Run()
    whole.steps(0, 5)
    Checkpoints(tmp_path).save("agent", whole.state(), step=5)
    whole.steps(5, 10)

    torch.manual_seed(99)
    resumed = Run()
    checkpoint = Checkpoints(tmp_path).load("agent")
    resumed.load(checkpoint.state)
    resumed.steps(checkpoint.step, 10)
    assert torch.equal(_weights(whole), _weights(resumed))


def test_load_without_checkpoint_gives_none(tmp_path):
    assert Checkpoints(tmp_path).load("agent") is None
    assert not Checkpoints(tmp_path).any()


def test_load_gives_each_stage_its_own_step_and_state(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save("supernet", {"loss": 0.5, "names": ["a"]}, step=3)
    checkpoints.save("agent", {}, step=1)
    supernet, agent = checkpoints.load("supernet"), checkpoints.load("agent")
    assert (supernet.step, agent.step) == (3, 1)
    assert (supernet.state, agent.state) == ({"loss": 0.5, "names": ["a"]}, {})
    assert checkpoints.any()


def test_save_again_replaces(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save("agent", {"value": 1}, step=1)
    checkpoints.save("agent", {"value": 2}, step=2)
    assert checkpoints.load("agent").state == {"value": 2}


@pytest.mark.parametrize("content", [b"", b"nonsense", "half", "pickle"])
def test_load_broken_checkpoint_is_named(tmp_path, content):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save("agent", {"weights": torch.zeros(1000)})
    path = tmp_path / "checkpoints" / "agent.pt"
    if content == "half":
        content = path.read_bytes()[:2000]
    if content == "pickle":
        torch.save(Run(), path)  # code in a file is refused, not run
    else:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"checkpoint .*agent\.pt cannot be read: \S"):
        checkpoints.load("agent")
