"""An engine and a plan that answer what they are asked, and images that wait for them."""

from __future__ import annotations

import math
import threading
import time
from concurrent.futures import Future

import numpy as np

from service.batcher import Answer, Batcher, Make, Reservation
from service.engines.base import Result
from service.errors import DeadlineUnreachable
from service.limits import Asked, Limits, Planned


class EchoEngine:
    """Answers each row with what it was asked; a batch waits for the gate."""

    name = "echo"

    def __init__(self) -> None:
        self.gate, self.started = threading.Event(), threading.Event()
        self.gate.set()
        self.batches: list[int] = []
        self.caps: list[float] = []
        self.threads: set[str] = set()

    def run(self, images: np.ndarray, penalty: np.ndarray, cap: np.ndarray) -> Result:
        self.batches.append(len(images))
        self.caps += cap.tolist()
        self.threads.add(threading.current_thread().name)
        self.started.set()
        assert self.gate.wait(10)
        if np.isnan(images).any():
            raise ValueError("broken image")
        logits = np.stack([images[:, 0, 0, 0], penalty, np.minimum(cap, 99)], axis=1)
        return Result(
            logits.astype(np.float32), np.ones((len(images), 2), np.int64), np.arange(len(images))
        )


class EchoPlan:
    """Batches of four; a row's penalty and cap follow from its budget, which below 0 is refused."""

    def __init__(self) -> None:
        self.learnt: list[tuple[list[float], list[int]]] = []
        self.checked: list[tuple[int, int, float]] = []

    def plan(self, waiting: list[Asked], now: float) -> Planned:
        limits = [
            DeadlineUnreachable("too late")
            if asked.budget < 0
            else Limits(asked.budget, asked.budget / 2, asked.cap)
            for asked in waiting[:4]
        ]
        return Planned(limits, 5.0)

    def check(
        self, asked: Asked, waiting: list[Asked], places: int, busy_s: float, now: float
    ) -> None:
        self.checked.append((len(waiting), places, busy_s))
        if asked.due < 0:
            raise DeadlineUnreachable("too near")

    def hurries(self, asked: Asked) -> bool:
        return asked.due < math.inf

    def learn(self, limits: list[Limits], macs: list[int], seconds: float) -> None:
        self.learnt.append(([limit.budget for limit in limits], macs))


def image(value: float) -> np.ndarray:
    return np.full((3, 2, 2), value, np.float32)


class Waiting(Future):
    """The answer of an image; to cancel it gives up its place."""

    def __init__(self, places: Reservation, value: float | Make) -> None:
        super().__init__()
        self.places = places
        places.submit(value if callable(value) else image(value), self.tell)

    def tell(self, outcome: Answer | Exception) -> None:
        if isinstance(outcome, Exception):
            self.set_exception(outcome)
        else:
            self.set_result(outcome)

    def cancel(self) -> bool:
        self.places.__exit__()
        return super().cancel()


def submit(batcher: Batcher, *values: float) -> list[Waiting]:
    return [Waiting(batcher.reserve(1, asked(value, value / 4)), value) for value in values]


def asked(budget: float, cap: float | None = None) -> Asked:
    return Asked(time.perf_counter(), budget, cap)


def hold(batcher: Batcher, engine: EchoEngine) -> list:
    """Let one image occupy the engine until its gate opens."""
    engine.gate.clear()
    futures = submit(batcher, 0)
    assert engine.started.wait(10)
    return futures
