"""What `models.preprocess` refuses, and what it lets pass that is no fault of the image."""

from __future__ import annotations

import contextlib
import struct
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image, PngImagePlugin

from models.preprocess import (
    FormatNotAllowed,
    ImageError,
    NotAnImage,
    TooComplex,
    TooManyPixels,
    decode,
    preprocess,
)
from tests.models.pictures import LIMIT, SMALL, encode, photo


def chunk(kind: bytes, data: bytes) -> bytes:
    check = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + check


def png_header(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = chunk(b"IDAT", zlib.compress(b"\0" * 64))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + data + chunk(b"IEND", b"")


@pytest.mark.parametrize("content", [b"", b"hello", b"\x00" * 100, b"<html></html>", b"RIFF"])
def test_decode_no_image_refused(content: bytes) -> None:
    with pytest.raises(NotAnImage, match="JPEG, PNG, WebP, GIF or BMP"):
        decode(content, LIMIT)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_decode_truncated_refused(kind: str, share: float) -> None:
    content = encode(photo(64, 64), kind)
    with pytest.raises(NotAnImage):
        decode(content[: int(len(content) * share)], LIMIT)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_decode_flipped_bytes_raise_nothing_else(kind: str) -> None:
    content = encode(photo(16, 16), kind)
    rng = np.random.default_rng(0)
    for _ in range(100):
        broken = np.frombuffer(content, np.uint8).copy()
        broken[rng.integers(0, len(broken), 3)] = rng.integers(0, 256, 3)
        with contextlib.suppress(ImageError):
            assert preprocess(broken.tobytes(), SMALL, LIMIT).shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (encode(photo(), "TIFF"), "TIFF"),
        (encode(photo(), "ICO"), "ICO"),
        (b"%PDF-1.7 ...", "PDF"),
        (b"\0\0\0\x1cftypavif", "AVIF"),
        (b"\0\0\0\x1cftypheic", "HEIC"),
        (b"<svg xmlns=''/>", "SVG"),
    ],
)
def test_decode_known_format_not_allowed_named(content: bytes, name: str) -> None:
    with pytest.raises(FormatNotAllowed, match=name):
        decode(content, LIMIT)


def jpeg_of_exif(parts: int) -> bytes:
    content, part = encode(photo(), "JPEG"), b"\xff\xe1\0\x0cExif\0\0some"
    return content[:2] + part * parts + content[2:]


def png_of_chunks(kind: bytes, data: bytes, count: int) -> bytes:
    content, many = encode(photo(), "PNG"), chunk(kind, data) * count
    # Behind the header; as many again at the end, which are read after the pixels.
    return content[:33] + many + content[33:-12] + many + content[-12:]


INFLATING = zlib.compress(bytes(1000))


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        (b"iCCP", b"a\0\0" + INFLATING),
        (b"zTXt", b"\0\0" + INFLATING),
        (b"iTXt", b"a\0\1\0\0\0" + INFLATING),
    ],
    ids=["profile", "text", "international text"],
)
def test_decode_png_of_many_pieces_that_inflate_refused(kind: bytes, data: bytes) -> None:
    assert decode(png_of_chunks(kind, data, 50), LIMIT).size == (8, 8)
    with pytest.raises(TooComplex, match="more than 100 pieces"):
        decode(png_of_chunks(kind, data, 51), LIMIT)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_decode_jpeg_of_exif_in_many_parts_refused() -> None:
    assert decode(jpeg_of_exif(100), LIMIT).size == (8, 8)
    with pytest.raises(TooComplex, match="more than 100 pieces"):
        decode(jpeg_of_exif(101), LIMIT)


@pytest.mark.parametrize("step", ["_open", "load", "transpose", "getexif"])
def test_preprocess_without_memory_says_nothing_of_the_image(
    monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*_: object) -> None:
        raise MemoryError

    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    content = encode(photo(), "PNG", exif=exif)
    monkeypatch.setattr(PngImagePlugin.PngImageFile, step, fail)
    with pytest.raises(MemoryError):
        preprocess(content, SMALL, LIMIT)


@pytest.mark.parametrize("size", [(10_000, 10_000), (2**31 - 1, 2**31 - 1), (1001, 1000)])
def test_decode_header_with_too_many_pixels_refused(size: tuple[int, int]) -> None:
    with pytest.raises(TooManyPixels, match="limit is 1000000"):
        decode(png_header(*size), LIMIT)


def test_decode_gif_frame_beyond_its_screen_counts() -> None:
    content = bytearray(encode(photo(), "GIF"))
    frame = content.index(b",\0\0\0\0\x08\0\x08\0")
    content[frame + 5 : frame + 9] = b"\xff\x7f\xff\x7f"
    with pytest.raises(TooManyPixels):
        decode(bytes(content), LIMIT)


def test_decode_webp_canvas_beyond_any_limit_refused() -> None:
    header = b"VP8X\x0a\0\0\0\0\0\0\0" + b"\xff\x3f\0" * 2
    content = b"RIFF" + struct.pack("<I", len(header) + 4) + b"WEBP" + header
    with pytest.raises(TooManyPixels):
        decode(content, LIMIT)


def test_decode_as_many_pixels_as_allowed_read() -> None:
    assert decode(encode(photo(8, 8), "PNG"), 64).size == (8, 8)
