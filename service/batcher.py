"""A bounded queue that becomes batches, on a thread of its own; knows no torch and no HTTP."""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType

import numpy as np
import numpy.typing as npt

from service.engines.base import Engine, Floats, Result
from service.errors import Draining, QueueFull


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one image.

    Attributes:
        logits: (C,) float32.
        widths: (L,) int64, groups computed per layer.
        macs: multiply–accumulates computed, the agent included.
        queue_s: seconds from `submit` to the start of the batch.
        inference_s: seconds that the whole batch took.
    """

    logits: Floats
    widths: npt.NDArray[np.int64]
    macs: int
    queue_s: float
    inference_s: float


@dataclass(frozen=True, slots=True)
class _Job:
    image: Floats
    penalty: float
    cap: float
    answer: Future[Answer] = field(default_factory=Future)
    submitted: float = field(default_factory=time.perf_counter)


class Batcher:
    """Runs an engine on what is waiting, at most `max_batch` images at once.

    Attributes:
        batches: how many were answered so far.

    Args:
        engine: called from the batcher's thread only.
        max_batch: the most images of a batch.
        max_wait_s: how long the first image of a batch waits for more.
        max_queue: the most images that may hold a place before their batch begins.
        on_batch: told the size of each batch and the seconds it took.
    """

    def __init__(
        self,
        engine: Engine,
        *,
        max_batch: int,
        max_wait_s: float,
        max_queue: int,
        on_batch: Callable[[int, float], None] = lambda size, seconds: None,
    ) -> None:
        self._engine = engine
        self._max_batch = max_batch
        self._max_wait_s = max_wait_s
        self._max_queue = max_queue
        self._on_batch = on_batch
        self._jobs: deque[_Job] = deque()
        self._held = 0
        self._closed = False
        self.batches = 0
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="inference", daemon=True)
        self._thread.start()

    @property
    def depth(self) -> int:
        """Images that hold a place: promised by `reserve`, or waiting for their batch."""
        return self._held

    def reserve(self, places: int) -> Reservation:
        """Hold places for images that are yet to be decoded; all of them or none.

        Raises:
            QueueFull: fewer are free.
            Draining: the batcher was closed.
        """
        with self._changed:
            if self._closed:
                raise Draining("what was asked is going out of service: ask again")
            if self._held + places > self._max_queue:
                raise QueueFull(
                    f"{self._held} images are waiting and {places} more would pass the limit of "
                    f"{self._max_queue}: try again later"
                )
            self._held += places
        return Reservation(self, places)

    def close(self) -> None:
        """Take no more, answer all that hold a place, then stop the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _submit(self, job: _Job) -> None:
        with self._changed:
            self._jobs.append(job)
            self._changed.notify_all()

    def _release(self, places: int) -> None:
        with self._changed:
            self._held -= places
            self._changed.notify_all()

    def _work(self) -> None:
        while jobs := self._take():
            wanted = [job for job in jobs if job.answer.set_running_or_notify_cancel()]
            if wanted:
                self._run(wanted)

    def _take(self) -> list[_Job]:
        """Wait for the next batch; empty once the batcher is closed and no place is held."""
        with self._changed:
            self._changed.wait_for(lambda: self._jobs or (self._closed and not self._held))
            if self._max_wait_s and self._jobs:
                full = self._jobs[0].submitted + self._max_wait_s - time.perf_counter()
                self._changed.wait_for(self._worth_no_wait, timeout=max(full, 0))
            jobs = [self._jobs.popleft() for _ in range(min(len(self._jobs), self._max_batch))]
            self._held -= len(jobs)
            return jobs

    def _worth_no_wait(self) -> bool:
        return len(self._jobs) >= self._max_batch or self._closed

    def _run(self, jobs: list[_Job]) -> None:
        started = time.perf_counter()
        try:
            result = self._engine.run(
                np.stack([job.image for job in jobs]),
                np.array([job.penalty for job in jobs], np.float32),
                np.array([job.cap for job in jobs], np.float64),
            )
            seconds = time.perf_counter() - started
            answers = [
                _answer(result, row, started - job.submitted, seconds)
                for row, job in enumerate(jobs)
            ]
            self.batches += 1
            self._on_batch(len(jobs), seconds)
        except Exception as error:  # the requests fail, the thread goes on
            for job in jobs:
                job.answer.set_exception(error)
            return
        for job, answer in zip(jobs, answers, strict=True):
            job.answer.set_result(answer)


class Reservation:
    """Places in the queue; those that were not used are given back on leaving the `with`."""

    def __init__(self, batcher: Batcher, places: int) -> None:
        self._batcher = batcher
        self._places = places

    def submit(self, image: Floats, penalty: float, cap: float | None) -> Future[Answer]:
        """Queue one image: (3, H, W) float32, with its own penalty and cap, if any."""
        assert self._places > 0, "more images than places reserved"
        self._places -= 1
        job = _Job(image, penalty, math.inf if cap is None else cap)
        self._batcher._submit(job)
        return job.answer

    def __enter__(self) -> Reservation:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._batcher._release(self._places)
        self._places = 0


def _answer(result: Result, row: int, queue_s: float, inference_s: float) -> Answer:
    return Answer(
        logits=result.logits[row],
        widths=result.widths[row],
        macs=int(result.macs[row]),
        queue_s=queue_s,
        inference_s=inference_s,
    )
