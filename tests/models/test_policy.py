from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from models.compute import FLOPS_PER_MAC, cap_macs, path_macs
from models.config import LOOK_LEAST_LOG, AgentConfig
from models.network import Greedy
from tests.models.support import (
    ALL,
    agent_config,
    all_paths,
    make_backbone,
    make_network,
    random_images,
    random_network,
    random_paths,
    tiny_backbone,
)

N = 12
FORMS = ["paths", "priced", "paper"]
# Of the way from the lowest cap to 1, and beyond.
SHARES = np.resize([0.01, 0.1, 0.3, 0.6, 1.0, 1.5, 2.2], N)
NO_CAP = torch.full((N,), torch.inf, dtype=torch.float64)


def walk(network, image, penalty, cap):
    """The numbers of the paths that an image (3, H, W) is run along, one decision at a time, and
    the logits in the end."""
    agent, macs = network.agent, network.table.looks
    mirrored = {"image": [], "both": {1, *range(len(macs) - 2, 0, -2)}}[agent.config.views]
    number, left, answer = 0, cap * network.table.full - macs[0], None
    ran = [0]
    while True:
        view = image.flip(2) if number in mirrored else image
        own, pooled = network.look(image[None], number)
        torch.testing.assert_close(own, network(view[None], agent.config.paths[number]))
        both = agent.config.views == "both" and number > 0
        answer = (2 * own + answer) / 3 if both else own
        if number >= len(agent.looks):
            break
        gains = agent(number, agent.seen(answer, pooled), torch.tensor([penalty]))[0].tolist()
        values = {number: 0.0}
        for later, gain in enumerate(gains, start=number + 1):
            if macs[later] <= left:
                values[later] = gain - penalty * macs[later] / network.table.full
        best = max(values, key=values.get)
        if best == number:
            break
        number, left = best, left - macs[best]
        ran.append(best)
    return ran, answer[0]


@pytest.mark.parametrize("form", FORMS)
def test_network_of_no_images_gives_no_answers(form):
    network = make_network("stream", form)
    images, nothing = random_images(network.backbone, 1)[:0], torch.zeros(0)
    logits, trace = network.by_policy(images, nothing, nothing.double())
    assert logits.shape == (0, 3)
    assert trace.widths.shape == (0, 7)
    assert trace.macs.shape == (0,)
    assert network.along(images, trace.widths).shape == (0, 3)


@pytest.mark.parametrize("penalty", [0.0, 0.3, 1e6])
@pytest.mark.parametrize("form", ["priced", "paper"])
@pytest.mark.parametrize("name", ALL)
def test_by_policy_layer_by_layer_leaves_the_first_layer_whole(name, form, penalty):
    network = make_network(name, form)
    images = random_images(network.backbone, N)
    _, trace = network.by_policy(images, torch.full((N,), penalty), NO_CAP)
    assert (trace.widths[:, 0] == network.backbone.groups).all()
    narrowest = random_paths(network.backbone, 2, whole=True)[1]
    assert penalty < 1e6 or (trace.widths == narrowest).all()


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ALL)
def test_by_policy_answers_as_along_the_paths_that_it_chose(name, form):
    network = make_network(name, form)
    images = random_images(network.backbone, N)
    logits, trace = network.by_policy(images, torch.full((N,), 0.2), NO_CAP)
    assert len(trace.widths.unique(dim=0)) > 1
    for layer in filter(network.backbone.tied, range(network.backbone.n_layers)):
        assert torch.equal(trace.widths[:, layer], trace.widths[:, layer - 2])
    torch.testing.assert_close(logits, network.along(images, trace.widths), rtol=1e-3, atol=1e-3)


def some_images(network):
    """16 of those on half of which stopping gains most."""
    return random_images(network.backbone, 64, seed=9)[::4]


def by_policy(network, images, penalty, cap=torch.inf):
    n = len(images)
    return network.by_policy(images, torch.full((n,), penalty), torch.full((n,), cap).double())


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("looks", [0, 1, 2])
def test_by_policy_computes_what_its_trace_says_of_all_paths_run(name, looks):
    network = make_network(name, "paths", looks=looks)
    images = some_images(network)
    with FlopCounterMode(display=False) as counter:
        _, trace = by_policy(network, images, 0.2)
    macs = trace.macs.tolist()
    assert counter.get_total_flops() == FLOPS_PER_MAC * sum(macs)
    assert 0 < macs.count(network.table.looks[0]) < len(images)
    # And of images by themselves, the one along most paths among them.
    for n in (0, macs.index(max(macs))):
        with FlopCounterMode(display=False) as counter:
            by_policy(network, images[n : n + 1], 0.2)
        assert counter.get_total_flops() == FLOPS_PER_MAC * macs[n]


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("looks", [0, 2])
@pytest.mark.parametrize("views", ["image", "both"])
def test_by_policy_runs_path_after_path_as_each_decision_says(name, looks, views):
    network = make_network(name, "paths", looks=looks, views=views)
    images, table = some_images(network), network.table
    penalties, paths = torch.linspace(-0.02, 0.6, len(images)), network.agent.config.paths
    for least in (0.9, 1.2, torch.inf):
        cap = max(least, (table.looks[0] + table.looks[1] + 0.5) / table.full)
        caps = torch.full((len(images),), cap).double()
        logits, trace = network.by_policy(images, penalties, caps)
        rows = zip(images, penalties.tolist(), strict=True)
        walks, answers = zip(*(walk(network, *row, cap) for row in rows), strict=True)
        assert trace.widths.tolist() == [list(paths[ran[-1]]) for ran in walks]
        assert trace.macs.tolist() == [sum(table.looks[n] for n in ran) for ran in walks]
        assert [row.nonzero()[:, 0].tolist() for row in trace.routes] == list(walks)
        assert trace.macs.max() <= cap * table.full
        torch.testing.assert_close(logits, torch.stack(answers), rtol=1e-3, atol=1e-3)
        lengths = set(map(len, walks))
        assert len(lengths) >= 2 or cap < 1
    # In this VGG-16 hardly anything changes the agent's mind after the second look.
    if not looks and name != "vgg16":
        assert {3, 4, 5} & lengths
        assert trace.macs.max() > table.full


@pytest.mark.parametrize("name", ALL)
def test_by_policy_that_looks_once_decides_only_once(name):
    network, asked = make_network(name, "paths", looks=1), []
    network.agent.register_forward_hook(lambda _agent, inputs, _gain: asked.append(inputs[0]))
    _, trace = by_policy(network, some_images(network), 0.2)
    assert asked == [0]
    first, *others = network.table.looks
    found = set(trace.macs.tolist())
    assert first in found
    assert found <= {first, *(first + macs for macs in others)}
    assert len(found) > 1


@pytest.mark.parametrize("name", ALL)
def test_by_policy_an_infinite_cap_limits_no_more_than_a_very_large_one(name):
    network = make_network(name, "paths")
    images = some_images(network)
    _, none = by_policy(network, images, -0.05)
    _, large = by_policy(network, images, -0.05, 50.0)
    _, whole = by_policy(network, images, -0.05, 1.0)
    assert torch.equal(none.macs, large.macs)
    assert (none.macs > network.table.full).any()
    assert (whole.macs <= network.table.full).all()


@pytest.mark.parametrize("name", ALL)
def test_by_policy_takes_the_first_look_for_the_answer_where_it_stops(name):
    network = make_network(name, "paths")
    images = random_images(network.backbone, N)
    narrow, _ = network.look(images, 0)
    logits, trace = network.by_policy(images, torch.full((N,), 0.2), NO_CAP)
    stopped = (trace.widths == 1).all(dim=1)
    assert 0 < stopped.sum() < N
    assert torch.equal(logits[stopped], narrow[stopped])
    assert (logits[~stopped] != narrow[~stopped]).any(dim=1).all()
    assert torch.equal(stopped, trace.macs == network.table.looks[0])
    torch.testing.assert_close(narrow, network(images, [1] * network.backbone.n_layers))


@pytest.mark.parametrize("name", ALL)
def test_by_policy_takes_only_the_agents_paths(name):
    network = make_network(name, "paths")
    images, paths = random_images(network.backbone, 64), network.agent.config.paths
    cap = torch.full((64,), torch.inf).double()
    _, trace = network.by_policy(images, torch.zeros(64), cap)
    chosen = set(map(tuple, trace.widths.tolist()))
    assert chosen <= set(paths)
    assert len(chosen) >= 4
    for penalty, path in ((1e6, paths[0]), (-1e6, paths[-1])):
        _, trace = network.by_policy(images, torch.full((64,), penalty), cap)
        assert (trace.widths == torch.tensor(path)).all()


@pytest.mark.parametrize("width", [1, 2, 3])
def test_look_sees_the_answer_and_the_mean_of_each_computed_channel_of_the_last_map(width):
    backbone, path = make_backbone("stream"), (1, 2, 1, 3, width, 1, width)
    agent = replace(agent_config("paths", backbone), paths=((1,) * 7, path, (3,) * 7))
    network = random_network(backbone, agent=agent)
    images = random_images(network.backbone, N)
    logits, pooled = network.look(images, 1)
    seen = network.agent.seen(logits, pooled)
    torch.testing.assert_close(logits, network(images, path))
    chances = logits.softmax(dim=1).clamp(min=math.exp(LOOK_LEAST_LOG))
    torch.testing.assert_close(seen[:, :3], chances)
    torch.testing.assert_close(seen[:, 3:6], chances.sort(descending=True).values)
    # The end of this backbone is one linear layer of these very means.
    means, end = seen[:, 12:], network.head[0]
    torch.testing.assert_close(F.linear(means, end.weight[:, : 4 * width], end.bias), logits)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ALL)
def test_by_policy_of_a_batch_chooses_as_for_each_image_alone(name, form):
    network = make_network(name, form)
    images = random_images(network.backbone, N)
    penalty, cap = torch.linspace(-0.1, 0.5, N), torch.linspace(0.5, 1, N).double()
    logits, trace = network.by_policy(images, penalty, cap)
    for n in range(N):
        alone, path = network.by_policy(images[n : n + 1], penalty[n : n + 1], cap[n : n + 1])
        assert path.widths[0].tolist() == trace.widths[n].tolist()
        assert path.macs[0] == trace.macs[n]
        torch.testing.assert_close(alone[0], logits[n], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ALL)
def test_by_policy_under_a_cap_never_exceeds_it(name, form):
    for seed in range(3):
        network = make_network(name, form, seed)
        if form != "paths":
            # A wish for all groups, or few caps would bind.
            network.agent.decoder.bias += torch.arange(network.backbone.groups)
        images, table = random_images(network.backbone, N, seed), network.table
        caps = table.least / table.full * (1 - SHARES) + SHARES
        _, trace = network.by_policy(images, torch.full((N,), -0.01), torch.from_numpy(caps))
        assert (trace.macs.numpy() <= cap_macs(caps, table.full)).all()
        assert (trace.macs >= table.least).all()
        assert len(trace.widths.unique(dim=0)) > 1


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["tiny", "stream"])
def test_by_policy_under_the_lowest_cap_takes_the_cheapest_path(name, form):
    network = make_network(name, form)
    table = network.table
    cap = torch.full((N,), (table.least + 0.5) / table.full).double()
    _, trace = network.by_policy(random_images(network.backbone, N), torch.full((N,), -9.0), cap)
    assert (trace.macs == table.least).all()


@pytest.mark.parametrize("rank", [0, 9, 26, 40, 66, 80])
@pytest.mark.parametrize("name", ["tiny", "stream"])
def test_greedy_that_wants_all_groups_takes_all_that_the_cap_leaves_room_for(name, rank):
    backbone = make_backbone(name)
    network = random_network(backbone, agent=AgentConfig(encoding=2, hidden=2))
    network.agent.decoder.weight.zero_()
    network.agent.decoder.bias.copy_(torch.tensor([0.0, 1.0, 2.0]))
    paths = all_paths(backbone, whole=True).numpy()
    macs = path_macs(paths, network.table, agent=True)
    # A cap that one of the paths just keeps.
    limit = np.sort(macs)[rank]
    cap = torch.tensor([(limit + 0.5) / network.table.full], dtype=torch.float64)
    _, trace = network.by_policy(random_images(backbone, 1), torch.zeros(1), cap)
    # Greedy layer by layer is the last of the kept paths in dictionary order.
    assert trace.widths[0].tolist() == max(paths[macs <= limit].tolist())


def test_greedy_of_equal_values_takes_the_narrowest():
    network = random_network(tiny_backbone())
    greedy = Greedy(network.agent, network.table, torch.zeros(2), torch.ones(2))
    allowed = torch.tensor([[True, True, True], [False, True, True]])
    assert greedy.pick(torch.zeros(2, 3), allowed).tolist() == [1, 2]
