from __future__ import annotations

import struct
import zlib

import numpy as np
import pytest
from PIL import ExifTags, Image

from models.preprocess import (
    Preprocessing,
    decode,
    preprocess,
)
from tests.models.pictures import LIMIT, SMALL, encode, photo


def half_red(width: int = 16, height: int = 8) -> Image.Image:
    """Red on the left, blue on the right."""
    image = Image.new("RGB", (width, height), "blue")
    image.paste("red", (0, 0, width // 2, height))
    return image


def mean_rgb(content: bytes) -> np.ndarray:
    return SMALL.pixels(decode(content, LIMIT)).mean(axis=(0, 1))


@pytest.mark.parametrize("kind", ["PNG", "BMP", "WEBP"])
def test_pixels_image_of_exact_size_untouched(kind: str) -> None:
    image = photo()
    options = {"lossless": True} if kind == "WEBP" else {}
    pixels = SMALL.pixels(decode(encode(image, kind, **options), LIMIT))
    np.testing.assert_array_equal(pixels, np.asarray(image))
    assert pixels.flags.writeable


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP"])
def test_decode_allowed_format_keeps_colour(kind: str) -> None:
    content = encode(Image.new("RGB", (20, 12), (200, 100, 50)), kind)
    np.testing.assert_allclose(mean_rgb(content), [200, 100, 50], atol=4)


def test_pixels_shorter_side_at_resize_crops_centre_exactly() -> None:
    image = photo(13, 8)
    pixels = SMALL.pixels(image)
    np.testing.assert_array_equal(pixels, np.asarray(image)[:, 2:10])


def test_pixels_larger_image_equals_resize_then_crop() -> None:
    image = photo(64, 32)
    preprocessing = Preprocessing(size=8, resize=16, mean=(0,) * 3, std=(1,) * 3)
    resized = image.resize((32, 16), Image.Resampling.BILINEAR).crop((12, 4, 20, 12))
    np.testing.assert_array_equal(preprocessing.pixels(image), np.asarray(resized))


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1), (3, 7), (9, 8)])
def test_pixels_any_shape_becomes_square(size: tuple[int, int]) -> None:
    preprocessing = Preprocessing(size=24, resize=32, mean=(0,) * 3, std=(1,) * 3)
    image = Image.new("RGB", size, (9, 8, 7))
    pixels = preprocessing.pixels(image)
    assert pixels.shape == (24, 24, 3)
    assert (pixels == [9, 8, 7]).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pixels_exif_orientation_turns_upright(orientation: int) -> None:
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    upright = photo()
    stored = upright.transpose(undo[orientation]) if orientation in undo else upright
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    pixels = SMALL.pixels(decode(encode(stored, "PNG", exif=exif), LIMIT))
    np.testing.assert_array_equal(pixels, np.asarray(upright))


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_pixels_broken_exif_turns_nothing() -> None:
    image = half_red(8)
    content = encode(image, "PNG", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01")
    np.testing.assert_array_equal(SMALL.pixels(decode(content, LIMIT)), np.asarray(image))


def test_pixels_cmyk_becomes_rgb() -> None:
    image = Image.new("RGB", (8, 8), (200, 100, 50)).convert("CMYK")
    np.testing.assert_allclose(mean_rgb(encode(image, "JPEG")), [200, 100, 50], atol=4)


def test_pixels_palette_becomes_rgb() -> None:
    image = half_red(8).convert("P", palette=Image.Palette.ADAPTIVE)
    pixels = SMALL.pixels(decode(encode(image, "PNG"), LIMIT))
    np.testing.assert_array_equal(pixels, np.asarray(half_red(8)))


@pytest.mark.parametrize("mode", ["1", "L"])
def test_pixels_grey_becomes_rgb(mode: str) -> None:
    image = Image.new(mode, (8, 8), 255)
    np.testing.assert_array_equal(mean_rgb(encode(image, "PNG")), [255, 255, 255])


def test_pixels_16_bit_grey_keeps_its_brightness() -> None:
    values = np.full((8, 8), 100 << 8, np.uint16)
    np.testing.assert_array_equal(mean_rgb(encode(Image.fromarray(values), "PNG")), [100, 100, 100])


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_pixels_transparent_becomes_white(mode: str) -> None:
    image = Image.new("RGBA", (8, 8), (0, 0, 0, 0)).convert(mode)
    np.testing.assert_array_equal(mean_rgb(encode(image, "PNG")), [255, 255, 255])


def test_pixels_half_transparent_is_mixed_with_white() -> None:
    image = Image.new("RGBA", (8, 8), (255, 0, 0, 128))
    np.testing.assert_allclose(mean_rgb(encode(image, "PNG")), [255, 127, 127], atol=1)


def test_pixels_transparency_is_mixed_as_the_standard_says() -> None:
    # Every value under every opacity.
    values, alpha = np.mgrid[:256, :256].astype(np.uint8)
    image = Image.fromarray(np.dstack([values, 255 - values, values, alpha]))
    over = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    pixels = Preprocessing(256, 256, (0.5,) * 3, (0.5,) * 3).pixels(image)
    np.testing.assert_array_equal(pixels, np.asarray(over))


def png_of(depth: int, colour: int, samples: list[list[int]], key: tuple[int, ...]) -> bytes:
    """A PNG of rows of samples, of so many bits each, and the colour that is transparent."""
    rows = b""
    for row in samples:
        bits = "".join(f"{value:0{depth}b}" for value in row)
        rows += b"\0" + int(bits, 2).to_bytes(len(bits) // 8, "big")
    width = len(samples[0]) // (3 if colour == 2 else 1)
    header = struct.pack(">IIBBBBB", width, len(samples), depth, colour, 0, 0, 0)
    parts = {b"IHDR": header, b"tRNS": struct.pack(f">{len(key)}H", *key)}
    parts |= {b"IDAT": zlib.compress(rows), b"IEND": b""}
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in parts.items():
        content += struct.pack(">I", len(data)) + kind + data
        content += struct.pack(">I", zlib.crc32(kind + data))
    return content


@pytest.mark.parametrize(
    ("depth", "colour", "keyed", "other", "shown"),
    [
        (1, 0, 0, 1, 255),
        (2, 0, 1, 2, 170),
        (4, 0, 1, 2, 34),
        (8, 0, 1, 2, 2),
        (16, 0, 0x1234, 0x3412, 0x34),
        (8, 2, 1, 2, 2),
        (16, 2, 0x1234, 0x3412, 0x34),
        (16, 2, 0xFF00, 0x0000, 0),
    ],
)
def test_pixels_of_the_transparent_colour_become_white_at_every_depth(
    depth: int, colour: int, keyed: int, other: int, shown: int
) -> None:
    channels = 3 if colour == 2 else 1
    samples = [([keyed] * 4 + [other] * 4) * channels] * 8
    if colour == 2:
        samples = [[keyed] * 12 + [other] * 12] * 8
    pixels = SMALL.pixels(decode(png_of(depth, colour, samples, (keyed,) * channels), LIMIT))
    np.testing.assert_array_equal(pixels[:, :4], np.full((8, 4, 3), 255))
    np.testing.assert_array_equal(pixels[:, 4:], np.full((8, 4, 3), shown))


def test_pixels_transparent_palette_becomes_white() -> None:
    image = half_red(8).convert("P", palette=Image.Palette.ADAPTIVE)
    red = image.getpixel((0, 0))
    pixels = SMALL.pixels(decode(encode(image, "GIF", transparency=red), LIMIT))
    np.testing.assert_array_equal(pixels[:, :4], np.full((8, 4, 3), 255))
    np.testing.assert_array_equal(pixels[:, 4:], np.asarray(half_red(8))[:, 4:])


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_decode_animation_takes_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if kind == "WEBP" else {}
    content = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    np.testing.assert_array_equal(mean_rgb(content), [255, 0, 0])


def test_normalise_values_and_axes() -> None:
    pixels = np.zeros((2, 8, 8, 3), np.uint8)
    pixels[1, 3, 5] = (255, 51, 0)
    values = SMALL.normalise(pixels)
    assert values.shape == (2, 3, 8, 8)
    assert values.dtype == np.float32
    assert values.flags.c_contiguous
    np.testing.assert_allclose(values[1, :, 3, 5], [2.5, -0.8, -0.6], rtol=1e-6)
    np.testing.assert_allclose(values[0, :, 0, 0], [-2.5, -1.6, -0.6], rtol=1e-6)


def test_preprocess_joins_decode_pixels_and_normalise() -> None:
    image = photo()
    values = preprocess(encode(image, "PNG"), SMALL, LIMIT)
    np.testing.assert_array_equal(values, SMALL.normalise(np.asarray(image)))


def test_preprocessing_from_dict_reads_json_lists() -> None:
    values = {"size": 8, "resize": 8, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.5]}
    assert Preprocessing.from_dict(values) == SMALL


@pytest.mark.parametrize(
    ("size", "resize", "std"), [(0, 8, (1,) * 3), (9, 8, (1,) * 3), (8, 8, (1, 1, 0))]
)
def test_preprocessing_impossible_values_refused(
    size: int, resize: int, std: tuple[float, float, float]
) -> None:
    with pytest.raises(ValueError, match="preprocessing"):
        Preprocessing(size, resize, (0, 0, 0), std)


@pytest.mark.parametrize(
    ("size", "least", "expected"),
    [
        ((640, 480), 32, (80, 60)),
        ((640, 480), 61, (160, 120)),
        ((480, 640), 176, (240, 320)),
        ((640, 480), 241, (640, 480)),
        ((640, 480), 0, (640, 480)),
    ],
)
def test_decode_jpeg_of_which_less_is_needed_is_read_smaller(
    size: tuple[int, int], least: int, expected: tuple[int, int]
) -> None:
    image = decode(encode(Image.new("RGB", size), "JPEG"), LIMIT, least)
    assert image.size == expected


@pytest.mark.parametrize(
    ("least", "options", "pixels"),
    [
        (0, {}, 640 * 480),
        (241, {}, 640 * 480),
        (240, {}, 320 * 240),
        # All that was compressed is read, at any size.
        (32, {}, 320 * 240),
        (32, {"restart_marker_blocks": 9}, 320 * 240),
        # Each scan visits the whole image.
        (32, {"progressive": True}, 640 * 480),
    ],
)
def test_decode_jpeg_that_is_read_smaller_counts_for_less(
    least: int, options: dict, pixels: int
) -> None:
    counted: list[int] = []
    content = encode(photo(640, 480), "JPEG", **options)
    decode(content, LIMIT, least, counted.append)
    # Behind its end there may be another image, which is not read.
    decode(content + content, LIMIT, least, counted.append)
    assert counted == [pixels] * 2


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "BMP"])
def test_decode_other_formats_are_read_whole(kind: str) -> None:
    assert decode(encode(photo(64, 48), kind), LIMIT, 8).size == (64, 48)


def test_preprocess_of_a_jpeg_read_smaller_is_hardly_another_image() -> None:
    smooth = photo().resize((640, 480), Image.Resampling.BICUBIC)
    preprocessing = Preprocessing(32, 36, (0.5,) * 3, (0.25,) * 3)
    content = encode(smooth, "JPEG", quality=90)
    whole = preprocessing.pixels(decode(content, LIMIT))
    smaller = preprocess(content, preprocessing, LIMIT)
    # A value is a quarter of the range of pixels.
    assert np.abs(smaller - preprocessing.normalise(whole)).mean() < 3 / 255 / 0.25


def test_preprocess_of_a_rotated_jpeg_read_smaller_is_upright() -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    content = encode(half_red(640, 480), "JPEG", exif=exif)
    preprocessing = Preprocessing(32, 32, (0.0,) * 3, (1.0,) * 3)
    pixels = preprocess(content, preprocessing, LIMIT)
    # Red was left; turned clockwise, it is on top.
    assert pixels[0, :12].mean() > 0.9
    assert pixels[0, 20:].mean() < 0.1
