"""Tests of training/measure.py."""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from models import backbones
from models.compute import FLOPS_PER_MAC, path_macs
from models.weights import folded
from tests.training.support import PREPROCESSING, SIZE, coloured, lively_network
from training.batches import generator
from training.measure import BATCH, Outcome, Policy, along, by_policy, machine
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


def _rest(network, outcome):
    """MACs of all but the convolutions: of the ends and of the agent, of every path run."""
    table, macs = network.table, outcome.fraction * network.table.full
    if network.agent.config.form != "paths":
        return (macs - _convolutions(network, outcome.widths)).sum()
    # What an image spent tells along which paths it was run.
    numbers, paths = range(len(table.looks)), np.array(network.agent.config.paths)
    runs = {
        sum(table.looks[n] for n in (0, *others)): [0, *others]
        for count in numbers
        for others in combinations(numbers[1:], count)
    }
    assert len(runs) == 2 ** (len(numbers) - 1)
    ran = [runs[round(spent)] for spent in macs]
    assert np.array_equal(outcome.widths, paths[[run[-1] for run in ran]])
    assert max(map(len, ran)) >= 3
    rest = np.array(table.looks) - _convolutions(network, paths)
    return sum(rest[run].sum() for run in ran)


def test_by_policy_computes_only_what_it_counts(network, images):
    """Nothing is computed for a channel that is off: an independent count finds the same."""
    outcome, counted = _counted(lambda: by_policy(network, images, PREPROCESSING, 0.3))
    assert len(np.unique(outcome.widths, axis=0)) >= 3
    spent = (outcome.fraction * network.table.full).sum()
    assert counted == pytest.approx(spent - _rest(network, outcome), abs=0.5)
    assert counted < 0.8 * network.table.full * len(images)
    # An agent on the way adds little; one that runs whole paths may run several.
    assert outcome.fraction.max() > 1.2 or not network.table.looks


def test_by_policy_higher_penalty_spends_less(network, images):
    spent = [by_policy(network, images, PREPROCESSING, p).mean_fraction for p in (0.01, 1, 100)]
    assert spent[0] > spent[1] > spent[2]


def test_policy_at_several_penalties_is_as_each_alone(network):
    images = coloured(BATCH + 30)
    policy = Policy(network, images, PREPROCESSING)
    for penalty in (0.3, 0.05, 100.0):
        found, alone = policy(penalty), by_policy(network, images, PREPROCESSING, penalty)
        assert np.array_equal(found.widths, alone.widths)
        assert np.array_equal(found.fraction, alone.fraction)
        np.testing.assert_allclose(found.logits, alone.logits, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("views", ["image", "both"])
def test_policy_along_the_ways_that_images_went_answers_the_same(views):
    images = coloured(60)
    backbone = backbones.build("resnet20", 3, width=0.25, image_size=SIZE)
    network = folded(lively_network(backbone, "paths", views=views))
    policy = Policy(network, images, PREPROCESSING)
    found, alone = policy(0.05), policy.alone()
    again = policy.by_routes(found.routes)
    assert found.routes.sum(axis=1).max() >= 2
    np.testing.assert_allclose(again.logits, found.logits, rtol=1e-4, atol=1e-5)
    assert np.array_equal(again.widths, found.widths)
    # Nobody was asked, so it costs less.
    assert (again.fraction < found.fraction).all()
    table, paths = network.table, network.agent.paths.numpy()
    macs = path_macs(paths, table, agent=False)
    np.testing.assert_allclose(again.fraction * table.full, found.routes @ macs)
    for number, (look, path) in enumerate(zip(alone, paths, strict=True)):
        plain = along(network, images, PREPROCESSING, path[None])
        same = np.allclose(look.logits, plain.logits, atol=1e-5)
        assert same != network.agent.config.mirrored(number)
        assert look.mean_fraction == pytest.approx(plain.mean_fraction)


def test_policy_runs_a_path_once_for_all_penalties(images):
    backbone = backbones.build("resnet20", 3, width=0.25, image_size=SIZE)
    network = folded(lively_network(backbone, "paths"))
    policy = Policy(network, images, PREPROCESSING)
    _, first = _counted(lambda: policy(0.3))
    counter = FlopCounterMode(display=False)
    with counter:
        policy(0.05)
    assert first > 0
    assert torch.ops.aten.convolution not in counter.get_flop_counts().get("Global", {})


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


def test_machine_names_the_gpu_where_it_was_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"a GPU, {device.index}")
    assert machine(torch.device("cuda", 1)) == "a GPU, 1"
    assert machine(torch.device("cpu")).endswith(f", {torch.get_num_threads()} threads")
