"""What a request turns out to be, gathered on its way for its log lines and its spans."""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class ImageNote:
    """One classified image: seconds of its stages, the last of which ended at `ended_ns`.

    Attributes:
        in_batch: it was decoded after the queue, not before.
    """

    ended_ns: int
    decode_s: float
    in_batch: bool
    queue_s: float
    inference_s: float
    macs: int
    fraction: float


@dataclass(slots=True)
class Notes:
    """Of one request; what it never had stays None.

    Attributes:
        asked: images that it had places for in the queue, whatever became of them.
        key: name of the key that it came with.
        code: code word of its refusal.
        trace_id: 32 hex digits, if it is traced.
    """

    key: str | None = None
    model: str | None = None
    budget: float | None = None
    code: str | None = None
    trace_id: str | None = None
    asked: int = 0
    images: list[ImageNote] = field(default_factory=list)

    @property
    def fraction(self) -> float:
        """Mean share of the full network's MACs, if there are images."""
        return sum(image.fraction for image in self.images) / len(self.images)


# None outside of a request.
NOTES: ContextVar[Notes | None] = ContextVar("notes", default=None)


def note_image(
    model: str,
    budget: float,
    *,
    macs: int,
    full_macs: int,
    decode_s: float,
    in_batch: bool,
    queue_s: float,
    inference_s: float,
) -> None:
    """Note an image that was just classified."""
    if notes := NOTES.get():
        notes.model, notes.budget = model, budget
        fraction = macs / full_macs
        notes.images.append(
            ImageNote(time.time_ns(), decode_s, in_batch, queue_s, inference_s, macs, fraction)
        )


def note_asked(images: int) -> None:
    """Note how many images the request is about to have classified."""
    if notes := NOTES.get():
        notes.asked = images


def note_refusal(code: str) -> None:
    """Note why the request is refused."""
    if notes := NOTES.get():
        notes.code = code
