"""From the bytes of images to answers: decoding, queue, engine; no HTTP."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass

import numpy as np

from models.compute import FLOPS_PER_MAC, MacTable, path_macs
from models.preprocess import Floats, ImageError, Preprocessing, preprocess
from service.batcher import Answer, Reservation
from service.errors import ServiceError, from_image_error
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


async def classify(
    service: Service, call: Call, contents: list[bytes]
) -> list[Classification | ServiceError]:
    """Classify image files, in order; one that cannot be read becomes the error that says why.

    Raises:
        ServiceError: the queue has not enough places for all, or the service is stopping.
    """
    with call.model.batcher.reserve(len(contents)) as places:
        if len(contents) == 1:
            return [await _classify_one(service, call, contents[0], places)]
        return await asyncio.gather(
            *(_classify_one(service, call, content, places) for content in contents)
        )


async def _classify_one(
    service: Service, call: Call, content: bytes, places: Reservation
) -> Classification | ServiceError:
    loop = asyncio.get_running_loop()
    card, limits = call.model.card, call.limits
    try:
        image, decode_s = await loop.run_in_executor(
            service.decoders, _decode, content, card.preprocessing, service.settings.max_pixels
        )
    except ImageError as error:
        return from_image_error(error)
    future = places.submit(image, limits.penalty, limits.cap)
    answer = await asyncio.wrap_future(future)
    service.metrics.decode_seconds.observe(decode_s)
    service.metrics.queue_seconds.observe(answer.queue_s)
    service.model_metrics[card.name].observe(answer)
    return _classification(call, answer, decode_s)


def _decode(content: bytes, preprocessing: Preprocessing, max_pixels: int) -> tuple[Floats, float]:
    started = time.perf_counter()
    image = preprocess(content, preprocessing, max_pixels)
    return image, time.perf_counter() - started


def _classification(call: Call, answer: Answer, decode_s: float) -> Classification:
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
    powers = np.exp(logits.astype(np.float64) - logits.max())
    probabilities = powers / powers.sum()
    order = np.argsort(-logits, kind="stable")[:top_k].tolist()
    return [
        Prediction(label=labels[index], index=index, probability=float(probabilities[index]))
        for index in order
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
