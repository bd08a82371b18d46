from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from service.settings import Settings
from service.state import FEW_SCANS, SMALL_FILE, SMALL_IMAGE, Service
from tests.service.support import FakeEngine, encode, png

# A photograph of the largest that benchmarks send, and a JPEG that visits its pixels often.
PHOTO = encode(Image.new("RGB", (500, 160)), "JPEG", progressive=True)
SCANS = PHOTO + b"\xff\xda" * FEW_SCANS
NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8))


@pytest.mark.parametrize(
    ("content", "small"),
    [
        (png(), True),
        (png(size=(1000, SMALL_IMAGE // 1000)), True),
        (png(size=(1001, SMALL_IMAGE // 1000)), False),
        (png(size=(400, 400)), False),
        (PHOTO, True),
        (SCANS, False),
        (encode(Image.new("RGBA", (3000, 3000)), "WEBP", lossless=True), False),
        (encode(NOISE), False),
        (encode(NOISE, "GIF"), False),
        (b"hello", False),
    ],
    ids=["small", "most", "wide", "large", "photo", "scans", "webp", "long", "gif", "none"],
)
def test_decodes_in_batch_only_what_is_small_in_bytes_and_pixels(
    settings: Settings, engine: FakeEngine, content: bytes, small: bool
) -> None:
    assert (len(content) > SMALL_FILE) == (content == encode(NOISE))
    for on in (True, False):
        service = Service(settings.model_copy(update={"decode_in_batch": on}), engine)
        assert service.decodes_in_batch(content) == (on and small)
        service.decoders.shutdown()
