"""Requests by name that broke the service once, or would break one without bounds."""

from __future__ import annotations

import gzip
import json
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from benchmarks.fuzz.__main__ import MODEL
from benchmarks.fuzz.files import (
    bmp_file,
    encode,
    exif,
    image_files,
    png_chunk,
    png_file,
    png_header,
)
from benchmarks.fuzz.shots import Shot, post

# Just within the limits that the service has by default.
_BYTES = 32 * 2**20 - 10_000
_SIDE = 6324


@dataclass(frozen=True)
class Case:
    """A request, and how the service answers it; the code is "" where there is none."""

    make: Callable[[], Shot]
    status: int
    code: str = ""


def hostile() -> dict[str, Case]:
    """All cases."""
    return {
        name: Case(_posted(make), *answer) for name, (make, *answer) in _IMAGES.items()
    } | _OTHERS


def _posted(make: Callable[[], bytes]) -> Callable[[], Shot]:
    return lambda: post("image", "/classify?budget=0.2", make())


def zeros(size: int) -> bytes:
    """Compressed zeros."""
    return zlib.compress(bytes(size), 9)


def _tiny_png(before: bytes = b"", after: bytes = b"") -> bytes:
    return png_file(png_header(8, 8), zeros(8 * 25), before, after)


def _empty_chunks(kind: bytes) -> bytes:
    chunk = png_chunk(kind, b"")
    return chunk * (_BYTES // len(chunk))


def _into_jpeg(pieces: bytes, at: int = 2) -> bytes:
    content = image_files()["jpeg"]
    return content[:at] + pieces + content[at:]


def many_scans(side: int, scans: int) -> bytes:
    """A grey progressive JPEG, each of whose scans says in some bytes that nothing changes."""

    def segment(kind: int, data: bytes) -> bytes:
        return struct.pack(">BBH", 255, kind, len(data) + 2) + data

    def codes(table: int, symbols: bytes) -> bytes:
        lengths = bytes([0, len(symbols), *(0 for _ in range(14))])  # all of two bits
        return segment(0xC4, bytes([table]) + lengths + symbols)

    def filled(bits: str) -> bytes:
        bits += "1" * (-len(bits) % 8)
        return int(bits, 2).to_bytes(len(bits) // 8).replace(b"\xff", b"\xff\0")

    blocks = (-(-side // 8)) ** 2
    frame = segment(0xC2, struct.pack(">BHHB", 8, side, side, 1) + b"\1\x11\0")
    head = b"\xff\xd8" + segment(0xDB, b"\0" + b"\1" * 64) + frame
    first = segment(0xDA, b"\1\1\0\0\0\0") + filled("00" * blocks)
    # "01" begins a run of 2¹⁴ blocks without a change, and as many more as the next 14 bits say.
    runs = ("01" + "1" * 14) * (blocks // 32767) + "00" * (blocks % 32767)
    scan = segment(0xDA, b"\1\1\0\1\x3f\0") + filled(runs)
    return head + codes(0, b"\0\1") + codes(0x10, b"\0\xe0") + first + scan * scans + b"\xff\xd9"


def _exif_in_parts() -> bytes:
    """As many as are read in fewer pieces than are allowed."""
    part = b"Exif\0\0" + bytes(900)
    segment = b"\xff\xe1" + struct.pack(">H", len(part) + 2) + part
    return _into_jpeg(segment * (_BYTES // len(segment)))


def _inflating(kind: bytes, head: bytes) -> bytes:
    """A PNG of chunks each of which inflates to the most that its reader allows one to."""
    chunk = png_chunk(kind, head + zeros(2**20))
    return _tiny_png(chunk * (_BYTES // len(chunk)))


def _comments_gif() -> bytes:
    content = image_files()["gif"]
    frame = content.index(b",", 13)
    return content[:frame] + b"!\xfe" + b"\1x" * (_BYTES // 2) + b"\0" + content[frame:]


def _wide_exif() -> bytes:
    """65,535 tags, each with data that lies elsewhere, and an orientation."""
    entries = [(0x0112, 3, 1, 6), *((tag, 1, 100, 8) for tag in range(0x113, 0x10000))]
    return png_chunk(b"eXIf", exif(entries)[6:])


def _infer(text: bytes, *headers: tuple[str, object]) -> Callable[[], Shot]:
    return lambda: post("v2", f"/v2/models/{MODEL}/infer", text, *headers)


def _inputs(data: bytes) -> bytes:
    return (
        b'{"inputs":[{"name":"input","shape":[1,3,32,32],"datatype":"FP32","data":' + data + b"}]}"
    )


def _put(body: bytes) -> Callable[[], Shot]:
    def make() -> Shot:
        shot = post("budget", "/budget", body, ("content-type", "application/json"))
        return Shot(shot.kind, shot.head.replace(b"POST", b"PUT", 1), shot.body)

    return make


def _form(body: bytes) -> Callable[[], Shot]:
    header = ("content-type", "multipart/form-data; boundary=b")
    return lambda: post("multipart", "/classify", body, header)


_PART = b'--b\r\nContent-Disposition: form-data; name="file"\r\n\r\n'
_PIXELS = (413, "too_many_pixels")
_COMPLEX = (413, "too_complex")
_BROKEN = (400, "not_an_image")

_IMAGES: dict[str, tuple[Callable[[], bytes], int, str]] = {
    # Found by mutation.
    "PNG of a palette without one": (
        lambda: png_file(png_header(8, 8, 4, 3), zeros(8 * 5)),
        *_BROKEN,
    ),
    "PNG of more transparent colours than colours": (
        lambda: png_file(
            png_header(8, 8, 4, 3),
            zeros(8 * 5),
            png_chunk(b"PLTE", bytes(6)) + png_chunk(b"tRNS", bytes(300)),
        ),
        *_BROKEN,
    ),
    # Long to decode for their pixels.
    "PNG of empty unknown chunks": (lambda: _tiny_png(_empty_chunks(b"aaAa")), *_COMPLEX),
    "PNG with empty unknown chunks at its end": (
        lambda: _tiny_png(after=_empty_chunks(b"aaAa")),
        *_COMPLEX,
    ),
    "PNG of empty lines": (
        lambda: png_header(8, 8) + _empty_chunks(b"IDAT") + png_chunk(b"IEND", b""),
        *_COMPLEX,
    ),
    "JPEG of empty comments": (lambda: _into_jpeg(b"\xff\xfe\0\2" * (_BYTES // 4)), *_COMPLEX),
    "JPEG of zeros before a segment": (lambda: _into_jpeg(bytes(_BYTES), 20), *_COMPLEX),
    "JPEG of many scans": (lambda: many_scans(4096, 200), *_COMPLEX),
    "JPEG with an end among its scans": (
        lambda: many_scans(64, 1)[:-2] + b"\xff\xfe\0\4\xff\xd9" + many_scans(64, 200)[-4000:],
        *_COMPLEX,
    ),
    "JPEG of EXIF in parts": (_exif_in_parts, *_COMPLEX),
    # Without a keyword, as a text's length is added up only where it has one.
    "PNG of texts that inflate": (lambda: _inflating(b"zTXt", b"\0\0"), *_COMPLEX),
    "PNG of profiles that inflate": (lambda: _inflating(b"iCCP", b"a\0\0"), *_COMPLEX),
    "GIF of comments of one byte": (_comments_gif, *_COMPLEX),
    "BMP of runs without room": (
        lambda: bmp_file(8, _SIDE, 8, 1, b"\xff\1" * (_BYTES // 2)),
        *_COMPLEX,
    ),
    "BMP of lines cut short": (
        lambda: bmp_file(_SIDE, _SIDE, 8, 1, b"\1\1\0\0" * _SIDE),
        *_COMPLEX,
    ),
    # Large, for few bytes.
    "PNG of 19 gigapixels": (lambda: png_file(png_header(2**31 - 1, 9), zeros(100)), *_PIXELS),
    "PNG of no pixels": (lambda: png_file(png_header(0, 0), zeros(0)), *_BROKEN),
    "WebP with a canvas of 16 gigabytes": (
        lambda: b"RIFF" + struct.pack("<I", 30) + b"WEBPVP8X" + struct.pack("<II", 10, 2)
        + b"\xff\xff\xff" + b"\xff\0\0" + bytes(8),
        *_PIXELS,
    ),
    "GIF of 65535 × 65535": (
        lambda: b"GIF89a\xff\xff\xff\xff\0\0\0" + image_files()["gif"][13:],
        *_PIXELS,
    ),
    "PNG of a text bomb": (
        lambda: _tiny_png(png_chunk(b"zTXt", b"a\0\0" + zeros(50 * 10**6))),
        *_BROKEN,
    ),
    "PNG of a profile bomb": (
        lambda: _tiny_png(png_chunk(b"iCCP", b"a\0\0" + zeros(50 * 10**6))),
        *_BROKEN,
    ),
    "PNG with 65,535 tags of EXIF": (lambda: _tiny_png(_wide_exif()), 200, ""),
    "40 megapixels, 16 bits, transparent": (
        lambda: png_file(png_header(_SIDE, _SIDE, 16, 6), zeros(_SIDE * (1 + 8 * _SIDE))),
        200,
        "",
    ),
    "40 megapixels, progressive": (
        lambda: encode(Image.new("RGB", (_SIDE, _SIDE)), "JPEG", progressive=True),
        200,
        "",
    ),
}  # fmt: skip

_OTHERS: dict[str, Case] = {
    "budget that is not UTF-8": Case(_put(b"\xa1\xd8"), 422, "bad_parameter"),
    "budget that follows no time at all": Case(
        _put(b'{"mode":"auto","floor":1,"target_p95_ms":5e-324}'), 422, "bad_parameter"
    ),
    "budget of deep JSON": Case(_put(b"[" * 50_000), 422, "bad_parameter"),
    "JSON of ten million arrays": Case(_infer(_inputs(b"[" + b"[]," * 10**7 + b"[]]")), 413),
    "JSON of ten million numbers": Case(_infer(_inputs(b"[" + b"1," * 10**7 + b"1]")), 413),
    "JSON of five million keys": Case(_infer(b"{" + b'"":1,' * 5 * 10**6 + b'"":1}'), 413),
    "JSON nested deeply": Case(_infer(b"[" * 15_000), 400),
    "JSON of a number with 5000 digits": Case(_infer(_inputs(b"[" + b"9" * 5000 + b"]")), 400),
    "JSON of NaN": Case(_infer(_inputs(b"[NaN]")), 400),
    "JSON of infinity": Case(_infer(_inputs(json.dumps([1e308] * 3072).encode())), 400),
    "gzip of 1 gigabyte": Case(
        _infer(gzip.compress(bytes(10**6)) * 1000, ("content-encoding", "gzip")), 400
    ),
    "gzip of 50 megabytes": Case(
        _infer(gzip.compress(bytes(5 * 10**7)), ("content-encoding", "gzip")), 413
    ),
    "form of almost boundaries": Case(
        _form(_PART + b"\r\n--" * (_BYTES // 4) + b"\r\n--b--"), 200
    ),
    "form of one endless header": Case(
        _form(b"--b\r\nContent-Disposition: " + b"a" * _BYTES), 400, "bad_multipart"
    ),
    "form of many parts": Case(_form(_PART * 10**5 + b"\r\n--b--"), 413, "too_many_parts"),
    "model with a name of 3000 letters": Case(
        lambda: post("v2", f"/v2/models/{'x' * 3000}/infer", b"{}"), 404
    ),
}  # fmt: skip
