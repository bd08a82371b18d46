from __future__ import annotations

import struct
from io import BytesIO

import pytest
from PIL import Image

from models import effort
from models.effort import BoundedFile, TooMuchEffort, check_scans, stated_pixels

SCAN = b"\xff\xda\0\4xx" + b"data \xff\0 \xff\xd0 data"


def test_bounded_file_is_read_so_often_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(effort, "MOST_READS", 3)
    file = BoundedFile(b"abcd")
    assert [file.read(1) for _ in range(3)] == [b"a", b"b", b"c"]
    with pytest.raises(TooMuchEffort, match="more than 3 pieces"):
        file.read(1)


@pytest.mark.parametrize(
    ("piece", "size"),
    [
        (b"Exif\0\0MM", 20),
        *((struct.pack(">I", 9) + kind, 8) for kind in (b"iCCP", b"iTXt", b"zTXt")),
    ],
    ids=["EXIF", "iCCP", "iTXt", "zTXt"],
)
def test_bounded_file_gives_so_much_costly_metadata_and_no_more(piece: bytes, size: int) -> None:
    piece = piece.ljust(size)
    file = BoundedFile(piece * 200)
    assert all(file.read(size) == piece for _ in range(100))
    with pytest.raises(TooMuchEffort, match="more than 100 pieces of EXIF"):
        file.read(size)


def test_bounded_file_other_pieces_are_no_metadata() -> None:
    file = BoundedFile(b"\0\0\0\x09tEXt" * 200 + b"\0\0\0\x09zTXt" * 200)
    for size in [8] * 200 + [16] * 100:
        file.read(size)


def image_file(kind: str, mode: str = "RGB", **options: object) -> bytes:
    stream = BytesIO()
    Image.new(mode, (300, 200)).save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        image_file("PNG"),
        *(image_file("JPEG", mode) for mode in ("L", "RGB", "CMYK")),
        image_file("JPEG", progressive=True, quality=5),
        image_file("WEBP", "RGBA", lossless=True),
        image_file("WEBP", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\0\0\0\0\0"),
    ],
    ids=["png", "grey", "jpeg", "cmyk", "progressive", "lossless webp", "webp with exif"],
)
def test_stated_pixels_are_those_of_the_image(content: bytes) -> None:
    assert stated_pixels(content) == 300 * 200


def test_stated_pixels_of_a_lossy_webp_are_hardly_more() -> None:
    assert stated_pixels(image_file("WEBP")) == 301 * 201


def test_stated_pixels_of_some_bytes_of_webp_are_many() -> None:
    content = b"RIFF\x1a\0\0\0WEBPVP8L\x0d\0\0\0\x2f" + struct.pack("<I", 6323 << 14 | 6323)
    assert stated_pixels(content) == 6324**2


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_stated_pixels_are_the_most_of_what_is_stated(kind: str) -> None:
    content = image_file(kind)
    small = {
        "PNG": b"\0\0\0\x0dIHDR" + struct.pack(">II", 8, 8) + bytes(9),
        "JPEG": b"\xff\xe1\0\x0d\xff\xc0\0\x0b\x08\0\x08\0\x08\x01\xff\xc0",
    }[kind]
    start = {"PNG": 8, "JPEG": 2}[kind]
    assert stated_pixels(content[:start] + small + content[start:]) == 300 * 200
    assert stated_pixels(content[:start] + small) == 64


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"hello",
        b"RIFF....WEBPJUNK",
        image_file("PNG")[:16],
        image_file("JPEG")[:20],
        image_file("GIF"),
        image_file("BMP"),
    ],
    ids=["empty", "text", "webp", "png cut short", "jpeg cut short", "gif", "bmp"],
)
def test_stated_pixels_of_other_files_are_not_known(content: bytes) -> None:
    assert stated_pixels(content) is None


@pytest.mark.parametrize(
    "content",
    [
        b"",
        SCAN * 99 + b"\xff\xd9" + SCAN * 9,
        # What a segment holds is no marker, nor is an escaped byte.
        b"\xff\xc4\0\6\xff\xda\xff\xda" * 99,
        b"\xff\0\xda" * 999,
        b"\xff" * 999 + b"\xd9",
        b"\xff",
        b"\xff\xda",
    ],
)
def test_check_scans_as_many_as_allowed_pass(content: bytes) -> None:
    check_scans(b"head" + content, 4, pixels=4_000_000)


@pytest.mark.parametrize(
    "content",
    [
        SCAN * 100,
        b"\xff\xff" + SCAN * 100,
        b"\xff\xfe\0\4\xff\xd9" + SCAN * 100,  # an end within a comment is none
        b"\xff\xfe\0\2" * 2001,
        b"\xff\xfe\0\0" * 2001,
    ],
)
def test_check_scans_more_refused(content: bytes) -> None:
    with pytest.raises(TooMuchEffort, match="more than 100 scans, or 2000 segments"):
        check_scans(b"head" + content, 4, pixels=4_000_000)


@pytest.mark.parametrize(("pixels", "most"), [(10_000_000, 40), (40_000_000, 20), (10**9, 20)])
def test_check_scans_of_more_pixels_fewer_pass(pixels: int, most: int) -> None:
    check_scans(b"head" + SCAN * (most - 1), 4, pixels)
    with pytest.raises(TooMuchEffort, match=f"more than {most} scans"):
        check_scans(b"head" + SCAN * most, 4, pixels)
