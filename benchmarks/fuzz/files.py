"""Small valid image files of every kind that the service meets: what mutation begins with."""

from __future__ import annotations

import functools
import struct
import zlib
from io import BytesIO

import numpy as np
from PIL import Image

WIDTH, HEIGHT = 40, 32


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    """The image as a file."""
    stream = BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk with its length and its right checksum."""
    check = struct.pack(">I", zlib.crc32(kind + data))
    return struct.pack(">I", len(data)) + kind + data + check


def png_header(
    width: int, height: int, depth: int = 8, colour: int = 2, interlaced: int = 0
) -> bytes:
    """A PNG's magic and first chunk."""
    fields = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", fields)


def png_file(header: bytes, data: bytes, before: bytes = b"", after: bytes = b"") -> bytes:
    """A PNG of a header, compressed lines, and chunks around them."""
    return header + before + png_chunk(b"IDAT", data) + after + png_chunk(b"IEND", b"")


def bmp_file(width: int, height: int, bits: int, compression: int, data: bytes) -> bytes:
    """A BMP with a palette of black."""
    palette = bytes(4 << bits)
    start = 54 + len(palette)
    info = (40, width, height, 1, bits, compression, len(data), 0, 0, 1 << bits, 0)
    return (
        b"BM"
        + struct.pack("<IHHI", start + len(data), 0, 0, start)
        + struct.pack("<IiiHHIIiiII", *info)
        + palette
        + data
    )


def exif(entries: list[tuple[int, int, int, int]]) -> bytes:
    """An EXIF block of one directory.

    Args:
        entries: (tag, type, count, value or offset) each.
    """
    fields = b"".join(struct.pack("<HHLL", *entry) for entry in entries)
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + fields + bytes(4)


@functools.cache
def image_files() -> dict[str, bytes]:
    """All files, by a name that begins with their format."""
    rng = np.random.default_rng(0)
    photo = Image.fromarray(rng.integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8))
    clear = photo.copy()
    clear.putalpha(photo.convert("L"))
    frames = [photo.rotate(angle) for angle in (90, 180)]
    turned = exif([(0x0112, 3, 1, 6)])
    deep = Image.fromarray(rng.integers(0, 2**16, (HEIGHT, WIDTH), np.uint16))
    lines = zlib.compress(bytes(HEIGHT * (1 + 8 * WIDTH) + 100))
    palette = photo.quantize(16)
    files = {
        "png": encode(photo, "PNG"),
        "png-1": encode(photo.convert("1"), "PNG"),
        "png-grey": encode(photo.convert("L"), "PNG"),
        "png-grey-alpha": encode(clear.convert("LA"), "PNG"),
        "png-palette": encode(palette, "PNG", transparency=3),
        "png-alpha": encode(clear, "PNG", exif=turned),
        "png-16": encode(deep, "PNG"),
        "png-16-colour": png_file(png_header(WIDTH, HEIGHT, 16, 6), lines),
        "png-interlaced": png_file(png_header(WIDTH, HEIGHT, 8, 2, 1), lines),
        "png-animated": encode(photo, "PNG", save_all=True, append_images=frames),
        "jpeg": encode(photo, "JPEG"),
        "jpeg-grey": encode(photo.convert("L"), "JPEG", quality=20),
        "jpeg-cmyk": encode(photo.convert("CMYK"), "JPEG"),
        "jpeg-progressive": encode(photo, "JPEG", progressive=True),
        "jpeg-turned": encode(photo, "JPEG", exif=turned, comment=b"a comment"),
        "jpeg-restarts": encode(photo, "JPEG", restart_marker_blocks=2, subsampling=0),
        "webp": encode(photo, "WEBP"),
        "webp-lossless": encode(clear, "WEBP", lossless=True, exif=turned),
        "webp-animated": encode(photo, "WEBP", save_all=True, append_images=frames),
        "gif": encode(palette, "GIF"),
        "gif-animated": encode(palette, "GIF", save_all=True, append_images=frames, comment=b"x"),
        "bmp": encode(photo, "BMP"),
        "bmp-1": encode(photo.convert("1"), "BMP"),
        "bmp-palette": encode(palette, "BMP"),
        "bmp-alpha": encode(clear, "BMP"),
        "bmp-runs": bmp_file(WIDTH, HEIGHT, 8, 1, (bytes([WIDTH, 1]) + b"\0\0") * HEIGHT + b"\0\1"),
        "bmp-runs-4": bmp_file(WIDTH, HEIGHT, 4, 2, (bytes([WIDTH, 18]) + b"\0\0") * HEIGHT),
    }
    # Known, and refused.
    for kind in ("TIFF", "ICO", "PPM", "TGA", "PCX"):
        files[kind.lower()] = encode(photo, kind)
    return files
