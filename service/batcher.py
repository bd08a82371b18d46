"""A bounded queue that becomes batches, on a thread of its own; knows no torch and no HTTP."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt

from service.engines.base import Engine, Floats
from service.errors import Draining, QueueFull
from service.ewma import Ewma
from service.limits import Asked, Limits, Planned
from service.ranking import probabilities, rankings

logger = logging.getLogger(__name__)

# The longest that a refused caller is told to wait, in seconds.
_LONGEST_RETRY_S = 60


class Plan(Protocol):
    """What decides on each batch; `service.planner` says more."""

    def plan(self, waiting: Sequence[Asked], now: float) -> Planned:
        """Decide which of what waits, the oldest first, is the next batch."""
        ...

    def check(
        self, asked: Asked, waiting: Sequence[Asked], places: int, busy_s: float, now: float
    ) -> None:
        """Refuse what cannot be in time."""
        ...

    def hurries(self, asked: Asked) -> bool:
        """Whether an image should not wait for others to share its batch."""
        ...

    def learn(self, limits: Sequence[Limits], macs: Sequence[int], seconds: float) -> None:
        """See what a batch cost and how long it took."""
        ...


@dataclass(frozen=True, slots=True)
class Answer:
    """What became of one image.

    Attributes:
        logits: (classes,) float32.
        probabilities: (classes,) float64, calibrated.
        ranking: (classes,) int64, most probable first.
        widths: (L,) int64, groups computed per layer.
        macs: multiply–accumulates computed, the agent included.
        limits: what it was allowed to cost.
        queue_s: seconds from `submit` to the start of the batch.
        inference_s: seconds that the whole batch took.
        finished: when it ended, by `time.perf_counter`.
    """

    logits: Floats
    probabilities: npt.NDArray[np.float64]
    ranking: npt.NDArray[np.int64]
    widths: npt.NDArray[np.int64]
    macs: int
    limits: Limits
    queue_s: float
    inference_s: float
    finished: float


# As the batcher's `stack` takes it.
Image = npt.NDArray[np.uint8] | Floats
# Makes an image when its batch begins, or raises what its caller is told.
Make = Callable[[], Image]
# Told what became of an image.
Tell = Callable[[Answer | Exception], None]


@dataclass(frozen=True, slots=True, eq=False)
class _Job:
    image: Image | Make
    places: Reservation
    tell: Tell
    submitted: float = field(default_factory=time.perf_counter)

    @property
    def asked(self) -> Asked:
        return self.places.asked


class Batcher:
    """Runs an engine on what is waiting, at most `max_batch` images at once.

    Attributes:
        batches: how many were answered so far.

    Args:
        engine: called from the batcher's thread only.
        plan: decides what the next batch is, and what its images may cost.
        max_batch: the most images of a batch; where so many wait, none waits for more.
        max_wait_s: how long the first image of a batch waits for more, if none hurries.
        max_queue: the most images that may hold a place before their batch begins.
        temperature: of the probabilities, see `models.card.Card`.
        stack: makes a batch of images, which may take its memory again for the next one.
        on_batch: told the size of each batch and the seconds it took.
    """

    def __init__(
        self,
        engine: Engine,
        plan: Plan,
        *,
        max_batch: int,
        max_wait_s: float,
        max_queue: int,
        temperature: float = 1.0,
        stack: Callable[[Sequence[Image]], Floats] = np.stack,
        on_batch: Callable[[int, float], None] = lambda size, seconds: None,
    ) -> None:
        self._engine, self._plan = engine, plan
        self._max_batch, self._max_wait_s, self._max_queue = max_batch, max_wait_s, max_queue
        self._temperature = temperature
        self._stack = stack
        self._on_batch = on_batch
        self._jobs: deque[_Job] = deque()
        self._held = 0
        self._busy_until = 0.0
        self._image_s = Ewma()
        self._closed = False
        self.batches = 0
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="inference", daemon=True)
        self._thread.start()

    @property
    def depth(self) -> int:
        """Images that hold a place: promised by `reserve`, or waiting for their batch."""
        return self._held

    def refusal(self, places: int = 1) -> QueueFull | None:
        """Why so many images would not be taken now, if they would not."""
        held = self._held
        if held + places <= self._max_queue:
            return None
        seconds = self._retry_after_s()
        return QueueFull(
            f"{held} images are waiting and {places} more would pass the limit of "
            f"{self._max_queue}: try again in {seconds} s",
            retry_after_s=seconds,
        )

    def reserve(self, places: int, asked: Asked) -> Reservation:
        """Hold places for images that are yet to be decoded; all of them or none.

        Raises:
            QueueFull: fewer are free.
            DeadlineUnreachable: their deadline is too near for what waits already.
            Draining: the batcher was closed.
        """
        with self._changed:
            if self._closed:
                raise Draining("what was asked is going out of service: ask again")
            if full := self.refusal(places):
                raise full
            if asked.due < math.inf:
                waiting, now = [job.asked for job in self._jobs], time.perf_counter()
                coming = self._held - len(waiting) + places
                self._plan.check(asked, waiting, coming, max(self._busy_until - now, 0), now)
            self._held += places
        return Reservation(self, places, asked)

    def close(self) -> None:
        """Take no more, answer all that hold a place, then stop the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()

    def _submit(self, job: _Job) -> None:
        with self._changed:
            if job.places.left:
                self._jobs.append(job)
                self._changed.notify()

    def _give_back(self, places: Reservation) -> None:
        with self._changed:
            self._held -= places.left
            places.left = 0
            waiting = [job for job in self._jobs if job.places is places]
            for job in waiting:
                self._jobs.remove(job)
            self._changed.notify()

    def _retry_after_s(self) -> int:
        """Whole seconds in which what waits now will have been answered, at the measured rate."""
        return min(max(math.ceil(self._held * self._image_s.mean), 1), _LONGEST_RETRY_S)

    def _work(self) -> None:
        while taken := self._take():
            self._answer(taken)
            # Or it would keep their images until the next ones come.
            del taken

    def _answer(self, taken: list[tuple[_Job, Limits | Exception]]) -> None:
        """Run a batch, without those that are refused."""
        run = []
        for job, limits in taken:
            if isinstance(limits, Exception):
                job.tell(limits)
            else:
                run.append((job, limits))
        if run:
            self._run(run)

    def _take(self) -> list[tuple[_Job, Limits | Exception]]:
        """Wait for the next batch; empty once the batcher is closed and no place is held."""
        with self._changed:
            self._busy_until = 0.0  # the batch before has ended, perhaps sooner than was expected
            while True:
                self._changed.wait_for(lambda: self._jobs or (self._closed and not self._held))
                if self._max_wait_s and self._jobs:
                    full = self._jobs[0].submitted + self._max_wait_s - time.perf_counter()
                    self._changed.wait_for(self._worth_no_wait, timeout=max(full, 0))
                # What was waited for may have been given up meanwhile.
                if self._jobs or (self._closed and not self._held):
                    break
            if not self._jobs:
                return []
            now = time.perf_counter()
            try:
                planned = self._plan.plan([job.asked for job in self._jobs], now)
            except Exception as error:  # the requests fail, the thread goes on
                planned = Planned([error] * len(self._jobs), 0.0)
            self._busy_until = now + planned.seconds
            taken = list(zip(self._taken(planned), planned.limits, strict=True))
            self._held -= len(taken)
            for job, _ in taken:
                job.places.left -= 1
            return taken

    def _taken(self, planned: Planned) -> list[_Job]:
        """The jobs of a batch, which wait no more."""
        if planned.rows is None:
            return [self._jobs.popleft() for _ in planned.limits]
        jobs, rows = list(self._jobs), set(planned.rows)
        self._jobs = deque(job for place, job in enumerate(jobs) if place not in rows)
        return [jobs[row] for row in planned.rows]

    def _worth_no_wait(self) -> bool:
        if len(self._jobs) >= self._max_batch or self._closed:
            return True
        return any(self._plan.hurries(job.asked) for job in self._jobs)

    def _run(self, wanted: list[tuple[_Job, Limits]]) -> None:
        began = time.perf_counter()
        jobs, images = _with_images(wanted)
        if not jobs:
            return
        started = time.perf_counter()
        limits = [limits for _, limits in jobs]
        try:
            result = self._engine.run(
                self._stack(images),
                np.array([limit.penalty for limit in limits], np.float32),
                np.array([math.inf if limit.cap is None else limit.cap for limit in limits]),
            )
            finished = time.perf_counter()
            seconds = finished - started
            # Here for all at once: on the event loop, each call waits for the other threads.
            shares = probabilities(result.logits, self._temperature)
            order = rankings(result.logits)
            answers = [
                Answer(
                    logits=result.logits[row],
                    probabilities=shares[row],
                    ranking=order[row],
                    widths=result.widths[row],
                    macs=int(result.macs[row]),
                    limits=limit,
                    queue_s=began - job.submitted,
                    inference_s=seconds,
                    finished=finished,
                )
                for row, (job, limit) in enumerate(jobs)
            ]
            self._image_s.add((finished - began) / len(jobs))
            self._on_batch(len(jobs), seconds)
        except Exception as error:  # the requests fail, the thread goes on
            for job, _ in jobs:
                job.tell(error)
            return
        self.batches += 1
        for (job, _), answer in zip(jobs, answers, strict=True):
            job.tell(answer)
        # Nobody need wait for it, and nobody is worse off if it fails.
        try:
            macs = [answer.macs for answer in answers]
            self._plan.learn(limits, macs, finished - began)
        except Exception:
            logger.exception("the plan did not learn from a batch")


def _with_images(
    wanted: Sequence[tuple[_Job, Limits]],
) -> tuple[list[tuple[_Job, Limits]], list[Image]]:
    """The jobs whose images there are, or can be made; the others are told why not."""
    jobs, images = [], []
    for job, limits in wanted:
        try:
            images.append(job.image() if callable(job.image) else job.image)
        except Exception as error:
            job.tell(error)
        else:
            jobs.append((job, limits))
    return jobs, images


class Reservation:
    """Places in the queue; on leaving the `with`, images that no batch took give theirs up.

    Attributes:
        asked: what is asked of each of the images.
        left: places that it still holds, for images in the queue or yet to come.
    """

    def __init__(self, batcher: Batcher, places: int, asked: Asked) -> None:
        self._batcher, self.left, self.asked = batcher, places, asked

    def submit(self, image: Image | Make, tell: Tell) -> None:
        """Queue one image, from any thread; if the places were given back nothing happens.

        Args:
            image: as the batcher's `stack` takes it, or what makes it when its batch begins.
            tell: called from the batcher's thread, which it must not hold up.
        """
        self._batcher._submit(_Job(image, self, tell))

    def __enter__(self) -> Reservation:
        return self

    def __exit__(self, *error: object) -> None:
        if self.left:
            self._batcher._give_back(self)
