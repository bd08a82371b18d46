"""Malformed requests against a real service: it must refuse, never break, hang or grow.

Starts `python -m service` and sends it mutated images, forms, tensors, encodings and HTTP, each
made from the seed and a number, so that every failure can be repeated:

    python -m benchmarks.fuzz --bodies 24000 --seed 0
    python -m benchmarks.fuzz --seed 0 --only 1234       # one again, with what was sent and said

Prints a table and ends in one JSON line. Exit code 1 if an answer was a 5xx, none, late or without
its reason, if memory kept rising, or if the service held something back.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from pathlib import Path

import models
from benchmarks.fuzz.campaign import (
    MOST_GROWTH_BYTES,
    Outcome,
    aftermath,
    attack,
    fault,
    send_alone,
)
from benchmarks.fuzz.requests import shot
from benchmarks.fuzz.server import running
from benchmarks.load.server import Server

MODEL = "cifar10-mcifarnet"
_MIB = 2**20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--bodies", type=int, default=24_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--senders", type=int, default=4, help="connections at once")
    parser.add_argument("--only", type=int, help="send the request of this number alone")
    parser.add_argument("--bundles", type=Path, default=Path(models.__path__[0]) / "bundles")
    parser.add_argument("--model", default=MODEL)
    flags = parser.parse_args()
    with running(flags.bundles, RNP_MODEL=flags.model) as server:
        if flags.only is not None:
            return repeat(server, flags)
        started = time.perf_counter()
        outcome = attack(
            server,
            range(flags.bodies),
            lambda number: shot(flags.seed, number, flags.model),
            flags.senders,
        )
        seconds = time.perf_counter() - started
        wrong = aftermath(server)
    if outcome.growth_bytes > MOST_GROWTH_BYTES:
        wrong.append(f"memory rose by {outcome.growth_bytes / _MIB:.0f} MiB")
    show(outcome, flags.seed)
    print("".join(f"after all: {sentence}\n" for sentence in wrong))
    print(json.dumps(report(outcome, wrong, flags, seconds)))
    return 1 if outcome.failures or wrong else 0


def repeat(server: Server, flags: argparse.Namespace) -> int:
    """Send one request and print it with its answer."""
    made = shot(flags.seed, flags.only, flags.model)
    print(f"{made.kind}, {len(made.body)} bytes of body\n{made.head[:2000]!r}\n{made.body[:400]!r}")
    reply = send_alone(server, made)
    print(f"{reply.status} after {reply.seconds:.3f} s\n{reply.body[:2000]!r}")
    wrong = fault(made, reply)
    print(f"FAILED {wrong}" if wrong else "as it should be")
    return 1 if wrong else 0


def show(outcome: Outcome, seed: int) -> None:
    """A table of statuses by kind, and what failed."""
    statuses = sorted({status for _, status in outcome.statuses})
    kinds = sorted({kind for kind, _ in outcome.statuses})
    head = ["kind", *(str(status) if status else "none" for status in statuses)]
    print(f"| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for kind in kinds:
        cells = [str(outcome.statuses[kind, status] or "") for status in statuses]
        print(f"| {' | '.join([kind, *cells])} |")
    print()
    for number, words in outcome.failures[:50]:
        print(f"FAILED {words}\n    python -m benchmarks.fuzz --seed {seed} --only {number}")


def report(
    outcome: Outcome, wrong: list[str], flags: argparse.Namespace, seconds: float
) -> dict[str, object]:
    """What scripts read."""
    totals: Counter[int] = Counter()
    for (_, status), count in outcome.statuses.items():
        totals[status] += count
    return {
        "benchmark": "fuzz",
        "seed": flags.seed,
        "bodies": flags.bodies,
        "seconds": round(seconds, 1),
        "statuses": dict(sorted(totals.items())),
        "failures": len(outcome.failures),
        "after": wrong,
        "slowest_s": round(outcome.slowest[0], 3),
        "slowest_number": outcome.slowest[1],
        "rss_mib": [
            round(value / _MIB) for value in outcome.memory[:: max(1, len(outcome.memory) // 20)]
        ],
        "growth_mib": round(outcome.growth_bytes / _MIB, 1),
    }


if __name__ == "__main__":
    sys.exit(main())
