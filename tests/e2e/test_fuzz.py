"""The real service, under malformed requests: a share of `python -m benchmarks.fuzz`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

import models
from benchmarks.fuzz.__main__ import MODEL
from benchmarks.fuzz.campaign import MOST_GROWTH_BYTES, aftermath, attack, fault, send_alone
from benchmarks.fuzz.requests import KINDS, shot
from benchmarks.fuzz.server import Server, running
from tests.e2e.hostile import hostile

BODIES, SEED = 3000, 1


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    bundles = tmp_path_factory.mktemp("bundles")
    (bundles / MODEL).symlink_to(Path(models.__path__[0]).resolve() / "bundles" / MODEL)
    with running(bundles, RNP_THREADS="1") as server:
        yield server


@pytest.mark.parametrize("name", hostile())
def test_hostile_request_is_answered_soon_and_as_documented(server: Server, name: str) -> None:
    case = hostile()[name]
    made = case.make()
    reply = send_alone(server, made)
    assert fault(made, reply) is None
    code = json.loads(reply.body).get("code", "")
    assert (reply.status, code) == (case.status, case.code)


def test_malformed_requests_break_nothing(server: Server) -> None:
    outcome = attack(server, range(BODIES), lambda number: shot(SEED, number, MODEL), 4)
    lines = [
        f"{words}: python -m benchmarks.fuzz --seed {SEED} --only {number}"
        for number, words in outcome.failures
    ]
    assert lines == []
    assert {kind for kind, _ in outcome.statuses} == set(KINDS)
    assert outcome.statuses.total() == BODIES
    assert outcome.growth_bytes <= MOST_GROWTH_BYTES
    assert aftermath(server) == []
