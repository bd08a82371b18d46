"""Tests of training/measure.py."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models import backbones
from models.compute import FLOPS_PER_MAC, path_macs
from models.weights import folded
from tests.training.support import PREPROCESSING, SIZE, coloured, lively_network
from training.batches import generator
from training.measure import BATCH, Outcome, along, by_policy
from training.supernet import draw_paths


@pytest.fixture(params=["mcifarnet priced", "resnet20 priced", "resnet20 paths"])
def network(request):
    name, form = request.param.split()
    backbone = backbones.build(name, 3, width=0.25, image_size=SIZE)
    return folded(lively_network(backbone, form))


@pytest.fixture
def images():
    return coloured(80)


def _counted(run):
    """What `run()` gives, and the MACs of its convolutions by torch's own count."""
    with FlopCounterMode(display=False) as counter:
        outcome = run()
    counts = counter.get_flop_counts()["Global"]
    return outcome, counts[torch.ops.aten.convolution] / FLOPS_PER_MAC


def _convolutions(network, widths):
    """MACs of the convolutions of each path, head and agent not included."""
    table = network.table
    return path_macs(widths, table, agent=False) - table.head[widths[:, -1] - 1]


def _chosen(network, widths):
    """MACs of the convolutions of all images that an agent sent along these paths."""
    macs = _convolutions(network, widths)
    if network.agent.config.form == "paths":
        # The narrowest path is run for all, and is the answer of those that are sent along it.
        narrowest = (widths == 1).all(axis=1)
        macs = np.where(narrowest, 0, macs) + _convolutions(network, np.ones_like(widths))
    return macs.sum()


@pytest.mark.parametrize("cap", [1.0, 0.5])
def test_by_policy_computes_only_what_it_counts(network, images, cap):
    """Nothing is computed for a channel that is off: an independent count finds the same."""
    outcome, counted = _counted(lambda: by_policy(network, images, PREPROCESSING, 0.3, cap))
    assert len(np.unique(outcome.widths, axis=0)) >= 3
    assert counted == _chosen(network, outcome.widths)
    assert counted < 0.8 * network.table.full * len(images)
    macs = path_macs(outcome.widths, network.table, agent=True)
    np.testing.assert_allclose(outcome.fraction * network.table.full, macs)
    assert cap == 1.0 or outcome.fraction.max() <= cap


def test_by_policy_higher_penalty_spends_less(network, images):
    spent = [by_policy(network, images, PREPROCESSING, p).mean_fraction for p in (0.01, 1, 100)]
    assert spent[0] > spent[1] > spent[2]


def test_along_computes_only_what_it_counts(network, images):
    paths = draw_paths(len(images), network.backbone, generator(0)).numpy()
    outcome, counted = _counted(lambda: along(network, images, PREPROCESSING, paths))
    assert np.array_equal(outcome.widths, paths)
    assert counted == _convolutions(network, paths).sum()
    macs = path_macs(paths, network.table, agent=False)  # no agent chose
    np.testing.assert_allclose(outcome.fraction * network.table.full, macs)


def test_along_one_row_serves_for_all_images(network, images):
    path = np.full((1, network.backbone.n_layers), 2)
    path[0, 1] = 3
    one = along(network, images, PREPROCESSING, path)
    many = along(network, images, PREPROCESSING, path.repeat(len(images), axis=0))
    assert np.array_equal(one.right, many.right)
    assert np.array_equal(one.widths, many.widths)
    assert np.array_equal(one.fraction, many.fraction)


def test_along_more_images_than_a_batch_gives_each_its_own_path():
    network = folded(lively_network(backbones.build("mcifarnet", 3, width=0.125, image_size=SIZE)))
    images = coloured(BATCH + 30)
    chosen = by_policy(network, images, PREPROCESSING, 0.3)
    again = along(network, images, PREPROCESSING, chosen.widths)
    assert len(np.unique(chosen.widths[BATCH:], axis=0)) > 3
    assert np.array_equal(chosen.right, again.right)
    assert 0 < chosen.accuracy < 1
    assert chosen.accuracy == np.mean(chosen.right)


def test_along_logits_give_log_probabilities_that_tell_sure_images_apart(network, images):
    path = np.full((1, network.backbone.n_layers), 4)
    outcome = along(network, images, PREPROCESSING, path)
    assert np.array_equal(outcome.right, outcome.logits.argmax(1) == images.labels)
    expected = torch.from_numpy(outcome.logits).double().log_softmax(1).numpy()
    np.testing.assert_allclose(outcome.log_probabilities, expected, atol=1e-9)
    sure = Outcome(outcome.widths, outcome.right, outcome.fraction, outcome.logits * 0 + [30, 0, 0])
    surer = replace(sure, logits=sure.logits + np.float32([1, 0, 0]))
    assert (surer.log_probabilities[:, 0] > sure.log_probabilities[:, 0]).all()
