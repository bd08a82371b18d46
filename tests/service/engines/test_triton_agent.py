from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch

from models.agent import PathAgent
from models.backbones import build
from models.compute import cap_macs
from models.config import Sees
from models.weights import load
from service.engines.triton_agent import Rows, TritonAgent
from tests.service.engines.support import random_bundle
from tests.service.engines.triton_support import DEVICE

N = 18


@pytest.mark.parametrize("classes", [3, 70])
@pytest.mark.parametrize(("looks", "sees"), [(0, "maps"), (1, "maps"), (0, "answer")])
def test_decide_goes_on_as_the_reference(classes: int, looks: int, sees: Sees) -> None:
    backbone = build("mcifarnet", classes, width=0.125, image_size=12)
    bundle = random_bundle(backbone, "paths", looks=looks, sees=sees)
    reference = load(backbone, bundle.card.agent, bundle.tensors).agent
    assert isinstance(reference, PathAgent)
    agent, numbers = TritonAgent(bundle, torch.device(DEVICE)), set()
    rng = torch.Generator().manual_seed(0)
    for look in range(agent.deciding):
        rows = some_rows(agent, bundle.card.table().full, look, rng)
        logits = torch.randn(N, classes, generator=rng) * 3
        means = torch.rand(N, backbone.layers[-1].out_channels, generator=rng)
        read = backbone.in_channels(backbone.n_layers, bundle.card.agent.paths[look][-1])
        gain = reference(look, reference.seen(logits, means[:, :read]), rows.penalty)
        left = rows.limits - rows.spent
        wanted = reference.choose(look, gain, rows.penalty, left)
        wanted[::7] = -1
        before, device_rows = rows.widths.clone(), on_device(rows)
        means[:, read:] = torch.nan
        agent.decide(look, logits.to(DEVICE), means.to(DEVICE), device_rows)
        check(agent, look, wanted, rows, before, device_rows)
        numbers |= set(wanted.tolist())
    assert len(numbers) > 2


def some_rows(agent: TritonAgent, full: int, look: int, rng: torch.Generator) -> Rows:
    """Images that have run a path, but for every seventh."""
    paths, steps = agent.paths.shape
    widths = torch.zeros(paths, steps, N, dtype=torch.int32)
    widths[look] = agent.paths[look, :, None]
    widths[look, :, ::7] = 0
    cap = np.resize([math.inf, 0.6, 1.2, math.inf, 0.3], N)
    chosen = torch.full((N,), look)
    chosen[::7] = -1
    spent = torch.full((N,), full // 8)
    penalty = torch.randn(N, generator=rng)
    return Rows(penalty, torch.from_numpy(cap_macs(cap, full)), widths, chosen, spent)


def on_device(rows: Rows) -> Rows:
    return Rows(
        *(getattr(rows, field.name).clone().to(DEVICE) for field in dataclasses.fields(rows))
    )


def check(
    agent: TritonAgent,
    look: int,
    wanted: torch.Tensor,
    asked: Rows,
    before: torch.Tensor,
    result: Rows,
) -> None:
    macs, paths = agent._macs.cpu(), agent.paths.cpu()
    assert torch.equal(result.chosen.cpu(), wanted)
    more = torch.where(wanted > look, macs[wanted], 0)
    assert torch.equal(result.spent.cpu(), asked.spent + more)
    for row, path in enumerate(wanted.tolist()):
        if path > look:
            before[path, :, row] = paths[path]
    assert torch.equal(result.widths.cpu(), before)


def test_decide_prefers_to_stop_where_nothing_is_gained() -> None:
    backbone = build("mcifarnet", 3, width=0.125, image_size=12)
    bundle = random_bundle(backbone, "paths")
    for name, values in bundle.tensors.items():
        if name.startswith("agent."):
            values[...] = 0
    agent = TritonAgent(bundle, torch.device(DEVICE))
    rows = some_rows(agent, bundle.card.table().full, 0, torch.Generator().manual_seed(0))
    rows = on_device(dataclasses.replace(rows, penalty=torch.zeros(N)))
    logits, means = (
        torch.zeros(N, 3, device=DEVICE),
        torch.zeros(N, backbone.layers[-1].out_channels, device=DEVICE),
    )
    agent.decide(0, logits, means, rows)
    assert rows.chosen.max() == 0
