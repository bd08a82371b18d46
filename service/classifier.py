"""From the bytes of images to answers: decoding, queue, engine; no HTTP."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass

from models.compute import FLOPS_PER_MAC, MacTable, path_macs
from models.preprocess import Floats, ImageError, Preprocessing, preprocess
from service.batcher import Answer, Reservation
from service.errors import ServiceError, from_image_error
from service.ranking import probabilities, ranking
from service.registry import Limits, ServedModel
from service.schemas import Classification, ClassifyQuery, Compute, Prediction, Timing
from service.state import Service


@dataclass(frozen=True)
class Call:
    """A request: what it asks of which model, who it is and when it began."""

    model: ServedModel
    limits: Limits
    top_k: int
    request_id: str
    started: float


def resolve(service: Service, query: ClassifyQuery, request_id: str, started: float) -> Call:
    """Check a request before its body is read.

    Raises:
        ServiceError: not ready, an unknown model, or a budget or cap that it cannot reach.
    """
    service.check_ready()
    model = service.model(query.model)
    budget = query.budget
    if budget is None:
        budget = service.budget.of(model.min_fraction)
    return Call(model, model.limits(budget, query.cap), query.top_k, request_id, started)


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
        ServiceError: the queue has not enough places for all, or the service is stopping.
    """
    return [
        result if isinstance(result, ServiceError) else _classification(call, result)
        for result in await answer_images(service, call, contents)
    ]


async def answer_images(
    service: Service, call: Call, images: Sequence[bytes | Floats]
) -> list[Answered | ServiceError]:
    """Run image files, or (3, H, W) preprocessed arrays, in order; see `classify` for errors."""
    with call.model.batcher.reserve(len(images)) as places:
        if len(images) == 1:
            return [await _answer_one(service, call, images[0], places)]
        return await asyncio.gather(
            *(_answer_one(service, call, image, places) for image in images)
        )


async def _answer_one(
    service: Service, call: Call, image: bytes | Floats, places: Reservation
) -> Answered | ServiceError:
    loop = asyncio.get_running_loop()
    card, limits = call.model.card, call.limits
    metrics, decode_s = service.model_metrics[card.name], 0.0
    try:
        if isinstance(image, bytes):
            submitted, max_pixels = time.perf_counter(), service.settings.max_pixels
            values, started, decode_s = await loop.run_in_executor(
                service.decoders, _decode, image, card.preprocessing, max_pixels
            )
            service.metrics.decode_queue_seconds.observe(started - submitted)
            service.metrics.decode_seconds.observe(decode_s)
        else:
            values = image
        future = places.submit(values, limits.penalty, limits.cap)
        answer = await asyncio.wrap_future(future)
    except Exception as error:
        metrics.totals.failed += 1
        if isinstance(error, ImageError):
            return from_image_error(error)
        raise
    service.metrics.queue_seconds.observe(answer.queue_s)
    metrics.observe(answer, decode_s)
    return Answered(answer, decode_s)


def _decode(
    content: bytes, preprocessing: Preprocessing, max_pixels: int
) -> tuple[Floats, float, float]:
    """The image, when its decoding began, and the seconds it took."""
    started = time.perf_counter()
    image = preprocess(content, preprocessing, max_pixels)
    return image, started, time.perf_counter() - started


def _classification(call: Call, answered: Answered) -> Classification:
    answer, decode_s = answered.answer, answered.decode_s
    return Classification(
        model=call.model.card.name,
        predictions=_predictions(answer.logits, call.model.card.labels, call.top_k),
        budget=call.limits.budget,
        cap=call.limits.cap,
        compute=_compute(call.model.table, answer),
        timing_ms=_timing(decode_s, answer, time.perf_counter() - call.started),
        request_id=call.request_id,
    )


def _predictions(logits: Floats, labels: tuple[str, ...], top_k: int) -> list[Prediction]:
    shares = probabilities(logits)
    return [
        Prediction(label=labels[index], index=index, probability=float(shares[index]))
        for index in ranking(logits, top_k)
    ]


def _compute(table: MacTable, answer: Answer) -> Compute:
    backbone_macs = int(path_macs(answer.widths[None], table, agent=False)[0])
    return Compute(
        macs=answer.macs,
        flops=FLOPS_PER_MAC * answer.macs,
        fraction=answer.macs / table.full,
        full_macs=table.full,
        agent_macs=answer.macs - backbone_macs,
        widths=answer.widths.tolist(),
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
