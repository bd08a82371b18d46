"""From the bytes of images to answers: decoding, queue, engine; no HTTP."""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial

from models.compute import FLOPS_PER_MAC
from models.preprocess import Floats, ImageError, Pixels, TooManyPixels, read_pixels
from service.batcher import Answer, Image, Reservation
from service.errors import DeadlinePassed, ServiceError, from_image_error
from service.limits import Asked
from service.notes import note_asked, note_image
from service.registry import ServedModel
from service.schemas import Classification, ClassifyQuery, Compute, Prediction, Timing
from service.state import Service

_Read = Callable[[bytes], Pixels]


@dataclass(frozen=True)
class Call:
    """A request: what it asks of which model, who it is and when it began."""

    model: ServedModel
    asked: Asked
    top_k: int
    request_id: str


def resolve(model: ServedModel, query: ClassifyQuery, request_id: str, started: float) -> Call:
    """Check a request before its body is read; the caller holds the model until it is answered.

    Raises:
        ServiceError: a budget or cap that the model cannot reach.
    """
    model.check(query.budget, query.cap)
    due = math.inf if query.deadline_ms is None else started + query.deadline_ms / 1e3
    asked = Asked(started, query.budget, query.cap, due)
    return Call(model, asked, query.top_k, request_id)


@dataclass(frozen=True)
class Answered:
    """What became of one image; `decode_s` is 0 if it came preprocessed."""

    answer: Answer
    decode_s: float


async def classify(
    service: Service, call: Call, contents: list[bytes]
) -> list[Classification | ServiceError]:
    """Classify image files, in order; one that cannot be read becomes the error that says why.

    Raises:
        ServiceError: the queue has not enough places for all, their deadline is too near, or the
            service is stopping.
    """
    return [
        result if isinstance(result, ServiceError) else _classification(call, result)
        for result in await answer_images(service, call, contents)
    ]


async def answer_images(
    service: Service, call: Call, images: Sequence[bytes | Floats]
) -> list[Answered | ServiceError]:
    """Run image files, or (3, H, W) preprocessed arrays, in order; see `classify` for errors."""
    asked = replace(call.asked, came=time.perf_counter())
    read = _reader(service, call)
    with call.model.batcher.reserve(len(images), asked) as places:
        note_asked(len(images))
        if len(images) == 1:
            return [await _answer_one(service, call, images[0], places, read)]
        # One that breaks must not leave others waiting in places that are given back.
        results = await asyncio.gather(
            *(_answer_one(service, call, image, places, read) for image in images),
            return_exceptions=True,
        )
    return [_raised(result) for result in results]


def _reader(service: Service, call: Call) -> _Read:
    """What reads the image files of a request."""
    settings = service.settings
    return partial(
        read_pixels,
        preprocessing=call.model.card.preprocessing,
        max_pixels=settings.max_pixels,
        count=_PixelAllowance(settings.max_request_pixels).count,
    )


class _PixelAllowance:
    """What the images of a request may have of pixels together; several threads decode them."""

    def __init__(self, limit: int) -> None:
        self._left = self._limit = limit
        self._lock = threading.Lock()

    def count(self, pixels: int) -> None:
        with self._lock:
            if pixels > self._left:
                raise TooManyPixels(
                    f"the images of the request have more than {self._limit} pixels together, "
                    "which is the limit: send several requests"
                )
            self._left -= pixels


async def _answer_one(
    service: Service, call: Call, image: bytes | Floats, places: Reservation, read: _Read
) -> Answered | ServiceError:
    asked, metrics = places.asked, call.model.metrics
    passage = _Passage(service, places, read)
    try:
        async with in_time(asked):
            passage.begin(image)
            answer = await passage.answer
    except DeadlinePassed as error:
        metrics.totals.failed += 1
        metrics.abandoned.inc()
        return error
    except asyncio.CancelledError:
        metrics.abandoned.inc()
        raise
    except Exception:
        metrics.totals.failed += 1
        raise
    if isinstance(answer, ServiceError):
        metrics.totals.failed += 1
        return answer
    service.metrics.queue_seconds.observe(answer.queue_s)
    metrics.observe(answer, passage.decode_s)
    now = time.perf_counter()
    # What a batch decodes is part of its own time.
    before_s = 0.0 if passage.in_batch else passage.decode_s
    call.model.planner.answered(before_s, now - answer.finished, now - asked.since)
    note_image(
        call.model.card.name,
        answer.limits.budget,
        macs=answer.macs,
        full_macs=call.model.table.full,
        decode_s=passage.decode_s,
        in_batch=passage.in_batch,
        queue_s=answer.queue_s,
        inference_s=answer.inference_s,
    )
    return Answered(answer, passage.decode_s)


def _raised(result: Answered | ServiceError | BaseException) -> Answered | ServiceError:
    if isinstance(result, Answered | ServiceError):
        return result
    raise result


def in_time(asked: Asked) -> AbstractAsyncContextManager[object]:
    """What is done within it is given up at the deadline, if there is one.

    Raises:
        DeadlinePassed: it was not done by then.
    """
    return nullcontext() if asked.due == math.inf else _in_time(asked)


@asynccontextmanager
async def _in_time(asked: Asked) -> AsyncIterator[None]:
    try:
        async with asyncio.timeout(asked.due - time.perf_counter()):
            yield
    except TimeoutError as error:
        raise DeadlinePassed(
            f"deadline_ms was {1e3 * (asked.due - asked.started):.4g}, and it took longer: "
            "allow more, or ask again later"
        ) from error


class _Passage:
    """The passage of one image through decoding and the queue, without a stop on the event loop.

    Attributes:
        answer: settled by the service's mailbox; to cancel it ends the passage before its decoding.
        decode_s: seconds that decoding took, 0 if there was none.
        in_batch: it is decoded after the queue, in the engine's thread.
    """

    def __init__(self, service: Service, places: Reservation, read: _Read) -> None:
        self._service, self._places, self._read = service, places, read
        loop = asyncio.get_running_loop()
        self.answer: asyncio.Future[Answer | ServiceError] = loop.create_future()
        self.decode_s, self.in_batch = 0.0, False

    def begin(self, image: bytes | Floats) -> None:
        """Set out with an image file, or a (3, H, W) preprocessed array."""
        if isinstance(image, bytes) and self._service.decodes_in_batch(image):
            self.in_batch = True
            self._places.submit(partial(self._made, image), self._tell)
        elif isinstance(image, bytes):
            self._service.decoders.post(partial(self._decode, image, time.perf_counter()))
        else:
            self._places.submit(image, self._tell)

    def _decode(self, content: bytes, submitted: float) -> None:
        if self.answer.done():
            return
        self._service.metrics.decode_queue_seconds.observe(time.perf_counter() - submitted)
        try:
            self._places.submit(self._made(content), self._tell)
        except Exception as error:
            self._tell(error)

    def _made(self, content: bytes) -> Image:
        started = time.perf_counter()
        image = self._read(content)
        self.decode_s = time.perf_counter() - started
        self._service.metrics.decode_seconds.observe(self.decode_s)
        return image

    def _tell(self, outcome: Answer | Exception) -> None:
        # A new error: the one that was raised holds what was decoded, by its traceback, in a cycle
        # that only the garbage collector ends.
        if isinstance(outcome, ImageError):
            outcome = from_image_error(outcome)
        self._service.mailbox.put(self.answer, outcome)


def _classification(call: Call, answered: Answered) -> Classification:
    answer, decode_s = answered.answer, answered.decode_s
    return Classification(
        model=call.model.card.name,
        predictions=_predictions(answer, call.model.card.labels, call.top_k),
        budget=answer.limits.budget,
        budget_by=answer.limits.by,
        cap=answer.limits.cap,
        compute=_compute(call.model, answer),
        timing_ms=_timing(decode_s, answer, time.perf_counter() - call.asked.started),
        request_id=call.request_id,
    )


def _predictions(answer: Answer, labels: tuple[str, ...], top_k: int) -> list[Prediction]:
    return [
        Prediction(label=labels[index], index=index, probability=float(answer.probabilities[index]))
        for index in answer.ranking[:top_k].tolist()
    ]


def _compute(model: ServedModel, answer: Answer) -> Compute:
    table, widths = model.table, answer.widths.tolist()
    return Compute(
        macs=answer.macs,
        flops=FLOPS_PER_MAC * answer.macs,
        fraction=answer.macs / table.full,
        full_macs=table.full,
        agent_macs=answer.macs - model.backbone_macs(tuple(widths)),
        widths=widths,
        groups=table.groups,
    )


def _timing(decode_s: float, answer: Answer, total_s: float) -> Timing:
    return Timing(
        decode=_ms(decode_s),
        queue=_ms(answer.queue_s),
        inference=_ms(answer.inference_s),
        total=_ms(total_s),
    )


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, 3)
