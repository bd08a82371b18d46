"""What is recorded for the agent of `training.pathwise`, and where that leads it."""

from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from tests.models.support import random_images, tiny_backbone
from tests.training.support import lively_network
from training.pathwise import follow, looks_of, record


@pytest.mark.parametrize("looks", [0, 1, 2])
@pytest.mark.parametrize("sees", ["maps", "answer"])
@torch.no_grad()
def test_record_holds_what_each_path_answers_by_itself(looks, sees):
    network = lively_network(tiny_backbone(), "paths", looks=looks, views="both")
    agent = network.agent
    agent.config = replace(agent.config, sees=sees)
    images, labels = random_images(network.backbone, 20), torch.arange(20) % 3
    records, n_paths = record(network, images, labels), len(agent.paths)
    assert records.logits.shape == (20, n_paths, network.backbone.classes)
    assert torch.equal(records.labels, labels)
    kept = (looks or n_paths - 1) if sees == "maps" else 0
    assert len(records.pooled) == kept
    for number, path in enumerate(agent.paths):
        view = images.flip(3) if number in {1, *range(n_paths - 2, 0, -2)} else images
        logits = network.along(view, path.expand(20, -1))
        torch.testing.assert_close(records.logits[:, number], logits)
        if number < kept:
            assert torch.equal(records.pooled[number], network.look(images, number)[1])


@pytest.mark.parametrize("views", ["image", "both"])
@torch.no_grad()
def test_looks_of_are_the_answers_after_each_path_and_each_that_may_have_been_before(views):
    network = lively_network(tiny_backbone(), "paths", views=views)
    agent, labels = network.agent, torch.arange(20) % 3
    records = record(network, random_images(network.backbone, 20), labels)
    looks, n_paths = looks_of(agent, records), len(agent.paths)
    assert [tuple(of.shape) for of in looks.losses] == [(20, max(n, 1)) for n in range(n_paths)]
    assert len(looks.seen) == n_paths - 1
    share = {"image": 0.0, "both": 1 / 3}[views]
    for number in range(n_paths):
        for before in range(max(number, 1)):
            # Along the first path, that before, and this one.
            answer = records.logits[:, 0]
            for step in sorted({before, number} - {0}):
                answer = (1 - share) * records.logits[:, step] + share * answer
            losses = F.cross_entropy(answer, labels, reduction="none")
            torch.testing.assert_close(looks.losses[number][:, before], losses)
            assert torch.equal(looks.right[number][:, before], answer.argmax(1) == labels)
            if number < n_paths - 1:
                seen = agent.seen(answer, records.pooled[number])
                torch.testing.assert_close(looks.seen[number][:, before], seen)


@torch.no_grad()
@pytest.mark.parametrize("looks", [0, 1, 2])
@pytest.mark.parametrize("views", ["image", "both"])
def test_follow_stops_where_by_policy_does_and_is_charged_for_what_came_after_the_first(
    looks, views
):
    network = lively_network(tiny_backbone(), "paths", looks=looks, views=views)
    images, labels = random_images(network.backbone, 60), torch.zeros(60, dtype=torch.int64)
    penalty = torch.linspace(-0.1, 1, 60)
    agent = network.agent
    seen = looks_of(agent, record(network, images, labels)).seen
    last, before, charged = follow(agent, seen, penalty)
    _, trace = network.by_policy(images, penalty, torch.full((60,), torch.inf).double())
    # What was long before is not told apart in the records, though it counts a little.
    few = trace.routes.sum(dim=1) <= (3 if views == "both" else 9)
    assert few.sum() > 30
    assert torch.equal(agent.paths[last][few], trace.widths[few])
    spent = (trace.macs - network.table.looks[0]).float() / network.table.full
    torch.testing.assert_close(charged[few], spent[few])
    for route, path, stop in zip(trace.routes[few], before[few], last[few], strict=True):
        *earlier, end = route.nonzero()[:, 0].tolist()
        assert (path, stop) == (earlier[-1] if earlier else 0, end)
    looks_of_each = network.table.looks
    at_once = {looks_of_each[0], *(looks_of_each[0] + macs for macs in looks_of_each[1:])}
    several = sum(macs not in at_once for macs in trace.macs.tolist())
    assert several == 0 if looks == 1 else several > 0
