"""Tests of training/backward.py."""

from contextlib import nullcontext

import pytest
import torch
from torch.nn import functional as F

from models.config import AgentConfig
from models.network import Network
from tests.training.support import chain
from training import backward
from training.backward import Backward
from training.supernet import sgd, update

PATHS = [[4, 4, 4, 4], [1, 1, 1, 1], [3, 2, 3, 1]]
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Network(chain(4, 8, 4), AgentConfig(encoding=4, hidden=8)).eval()


@pytest.fixture
def batch():
    torch.manual_seed(1)
    return torch.randn(12, 3, 6, 6), torch.arange(12) % 3


def _gradients(network):
    return {n: p.grad.clone() for n, p in network.named_parameters() if p.grad is not None}


def test_backward_adds_teacher_and_students_gradients(network, batch):
    images, labels = batch
    loss, right, teacher = Backward(network, smoothing=0.1, autocast=nullcontext())(*batch, PATHS)
    found = _gradients(network)

    network.zero_grad()
    logits = network(images, PATHS[0])
    taught = logits.softmax(1).detach()
    expected = F.cross_entropy(logits, labels, label_smoothing=0.1)
    assert loss.item() == pytest.approx(expected.item())
    for path in PATHS[1:]:
        expected = expected - (taught * network(images, path).log_softmax(1)).sum(1).mean()
    expected.backward()
    torch.testing.assert_close(found, _gradients(network))
    assert right == (logits.argmax(1) == labels).sum()
    torch.testing.assert_close(teacher, taught)
    assert not any(name.startswith("agent.") for name in found)


def test_backward_of_targets_that_are_sure_equals_that_of_labels(network, batch):
    images, labels = batch
    add = Backward(network, smoothing=0.1, autocast=nullcontext())
    loss, right, _ = add(images, labels, PATHS)
    expected = _gradients(network)
    network.zero_grad()
    again, same, _ = add(images, F.one_hot(labels, 3).float(), PATHS)
    assert (again.item(), same) == (pytest.approx(loss.item()), right)
    torch.testing.assert_close(_gradients(network), expected)


@needs_gpu
def test_backward_captured_trains_as_uncaptured(network, batch):
    """Through training and frozen statistics, other batches, and another size of batch."""
    state = {name: value.clone() for name, value in network.state_dict().items()}
    torch.manual_seed(2)
    batches = [(torch.randn(12, 3, 6, 6), torch.randint(3, (12,))) for _ in range(12)]
    batches.append((batches[0][0][:5], batches[0][1][:5]))
    found = []
    for capture in (True, False):
        network.load_state_dict(state)
        network = network.cuda().to(memory_format=torch.channels_last)
        add = Backward(network, smoothing=0.1, autocast=nullcontext(), capture=capture)
        optimizer = sgd(network, 0.05, 5e-4)
        losses = []
        for number, (images, labels) in enumerate(batches * 2):
            network.train(number < len(batches))
            loss, _, _ = add(images.cuda(), labels.cuda(), PATHS)
            losses.append(loss.item())
            update(optimizer)
        assert len(add._graphs) == (2 * len(PATHS) if capture else 0)
        found.append((losses, {n: v.cpu() for n, v in network.state_dict().items()}))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-2, atol=1e-3)


@needs_gpu
def test_backward_captures_no_more_than_so_many(network, batch, monkeypatch):
    monkeypatch.setattr(backward, "GRAPHS", 1)
    network = network.cuda()
    add = Backward(network, smoothing=0.1, autocast=nullcontext())
    optimizer = sgd(network, 0.05, 5e-4)
    for _ in range(6):
        add(*(part.cuda() for part in batch), PATHS)
        update(optimizer)
    assert len(add._graphs) == 1
