"""From the bytes of an image file to the network's input: the only copy, no torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import (
    BmpImagePlugin,
    ExifTags,
    GifImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    WebPImagePlugin,
)

from models.effort import MOST_RUN_PIXELS, BoundedFile, TooMuchEffort, check_scans

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Count = Callable[[int], None]

ALLOWED_FORMATS = "JPEG, PNG, WebP, GIF or BMP"

# Where a PNG's header has its bits per channel.
_PNG_DEPTH = 24
# What ends a JPEG's scan: a marker that is none of the restarts within.
_SCAN_END = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
_JPEG_END = b"\xff\xd9"
# Of a JPEG's pixels so many count at least, as all that was compressed is read at any size.
_LEAST_COUNTED = 1 / 4


class ImageError(ValueError):
    """An image that cannot be classified; the message says why and what to send instead."""


class NotAnImage(ImageError):
    """The bytes are no image, or only a part of one."""


class FormatNotAllowed(ImageError):
    """The bytes are of a known format that is not read."""


class TooManyPixels(ImageError):
    """The image's header states more pixels than are allowed."""


class TooComplex(ImageError):
    """The image is in so many pieces that decoding it would take far longer than its like."""


@dataclass(frozen=True)
class Preprocessing:
    """How an image becomes the network's input; it travels with the bundle.

    Attributes:
        size: side of the square input, in pixels.
        resize: what the image's shorter side is resized to before the centre is cropped.
        mean: per channel, of values in [0, 1].
        std: per channel, of values in [0, 1].
    """

    size: int
    resize: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        if not 0 < self.size <= self.resize:
            raise ValueError(f"preprocessing: size {self.size} is not in 1..resize {self.resize}")
        three = len(self.mean) == len(self.std) == 3
        if not three or not np.isfinite(self.mean + self.std).all() or min(self.std) <= 0:
            raise ValueError(
                f"preprocessing: mean {self.mean} and std {self.std} are not three numbers each, "
                "std above 0"
            )

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocessing:
        """Read back what `dataclasses.asdict` wrote, lists as tuples."""
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})

    def pixels(self, image: Image.Image) -> Pixels:
        """The upright image's centre at the network's size: (size, size, 3) uint8, RGB.

        A line's values lie in memory channel by channel, as `normalise` wants them.

        Raises:
            NotAnImage: its palette or transparency is broken.
        """
        try:
            lines = self._resized(_rgb(_upright(image))).tobytes("raw", "RGB;L")
            planes = np.frombuffer(bytearray(lines), np.uint8).reshape(self.size, 3, self.size)
            return planes.transpose(0, 2, 1)
        except MemoryError:  # says nothing of the image
            raise
        except Exception as error:  # Pillow checks neither as it decodes
            raise NotAnImage(
                f"the image cannot be converted to RGB: {error or 'broken'}"
            ) from error

    def normalise(self, pixels: Pixels, out: Floats | None = None) -> Floats:
        """(..., H, W, 3) uint8 pixels as (..., 3, H, W) float32 of about zero mean, contiguous.

        Args:
            out: where to; by default a new array.
        """
        *rest, height, width, channels = pixels.shape
        values = np.empty((*rest, channels, height, width), np.float32) if out is None else out
        # Into the new axes first: passes over what is contiguous cost next to nothing.
        values[...] = pixels.swapaxes(-1, -2).swapaxes(-2, -3)
        scale, shift = self._line
        values *= scale
        values += shift
        return values

    @cached_property
    def _line(self) -> tuple[Floats, Floats]:
        """By what each channel's values are multiplied, and what is added then, (3, 1, 1) both."""
        mean, std = (np.array(values)[:, None, None] for values in (self.mean, self.std))
        return (1 / (255 * std)).astype(np.float32), (-mean / std).astype(np.float32)

    def _resized(self, image: Image.Image) -> Image.Image:
        """Resize and crop in one step, so that a very long image never becomes a huge one."""
        width, height = image.size
        if width == height == self.size == self.resize:
            return image
        if min(width, height) == self.resize:
            x, y = (width - self.size) // 2, (height - self.size) // 2
            return image.crop((x, y, x + self.size, y + self.size))
        side = self.size * min(width, height) / self.resize
        left, top = (width - side) / 2, (height - side) / 2
        box = (left, top, left + side, top + side)
        return image.resize((self.size, self.size), Image.Resampling.BILINEAR, box)


def preprocess(content: bytes, preprocessing: Preprocessing, max_pixels: int) -> Floats:
    """The network's input for one image file: (3, size, size) float32.

    Raises:
        ImageError: see `decode`.
    """
    return preprocessing.normalise(read_pixels(content, preprocessing, max_pixels))


def read_pixels(
    content: bytes, preprocessing: Preprocessing, max_pixels: int, count: Count | None = None
) -> Pixels:
    """The centre of one image file at the network's size: (size, size, 3) uint8.

    Raises:
        ImageError: see `decode`.
    """
    return preprocessing.pixels(decode(content, max_pixels, preprocessing.resize, count))


def decode(
    content: bytes, max_pixels: int, least: int = 0, count: Count | None = None
) -> Image.Image:
    """Read an image file, of an animation the first frame.

    A large JPEG is read at a half, a quarter or an eighth of its size, which takes its decoder much
    less time than the whole, if its shorter side still has `least` pixels then.

    Args:
        content: the whole file; its format is read from its first bytes.
        max_pixels: the most pixels (width × height) the header may state.
        least: what is needed of the shorter side; 0 reads all there is.
        count: told what `_draft` says, before anything is decoded; it may raise `TooManyPixels`.

    Raises:
        NotAnImage: empty, no image, truncated or broken.
        FormatNotAllowed: a known format other than the five that are read.
        TooManyPixels: checked before anything is decoded.
        TooComplex: more pieces, metadata, scans or runs than any real image has.
    """
    opener = _opener(content)
    file = BoundedFile(content)
    try:
        image = opener(file)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise TooManyPixels(f"{error}; the limit is {max_pixels} pixels: send fewer") from error
    except TooMuchEffort as error:
        raise _too_complex(error) from error
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise whatever a broken header makes them
        raise NotAnImage(f"the image's header cannot be read: {error}") from error
    _check_pixels(image, max_pixels)
    try:
        _check_effort(image, content, file.tell())
        pixels = _draft(image, least, content, file.tell())
        if count is not None:
            count(pixels)
        image.load()
    except TooMuchEffort as error:
        raise _too_complex(error) from error
    except (MemoryError, TooManyPixels):
        raise
    except Exception as error:  # and so do its decoders
        raise NotAnImage(f"the image is truncated or broken: {error}") from error
    if image.format == "PNG":
        _scale_key(image, depth=content[_PNG_DEPTH])
    return image


def _scale_key(image: Image.Image, depth: int) -> None:
    """The transparent colour on the scale of the pixels; Pillow leaves it on that of the file."""
    key = image.info.get("transparency")
    if image.mode == "L" and isinstance(key, int) and depth in (2, 4):
        image.info["transparency"] = key * 255 // (2**depth - 1)
    elif image.mode == "RGB" and isinstance(key, tuple) and depth == 16:
        image.info["transparency"] = tuple(value >> 8 for value in key)


def _check_pixels(image: Image.Image, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise TooManyPixels(
            f"the image has {width} × {height} = {width * height} pixels, "
            f"the limit is {max_pixels}: send a smaller one"
        )


def _draft(image: ImageFile.ImageFile, least: int, content: bytes, position: int) -> int:
    """Let a JPEG be read smaller, and say how many pixels reading an image takes the time of.

    Of a JPEG of several scans these are all that its header states, as each scan visits them all.

    Args:
        least: see `decode`.
        position: of a JPEG's first scan's data.
    """
    width, height = image.size
    if least:
        image.draft(None, (least, least))  # only a JPEG heeds it
    if image.size == (width, height):
        return width * height
    end = _SCAN_END.search(content, position)
    if end is None or end[0] != _JPEG_END:
        return width * height
    return max(image.size[0] * image.size[1], round(_LEAST_COUNTED * width * height))


def _check_effort(image: ImageFile.ImageFile, content: bytes, position: int) -> None:
    """Refuse what would keep a decoder busy for long, but for few bytes or pixels."""
    pixels = image.size[0] * image.size[1]
    if isinstance(image, JpegImagePlugin.JpegImageFile):
        check_scans(content, position, pixels)
    elif image.tile and image.tile[0].codec_name == "bmp_rle" and pixels > MOST_RUN_PIXELS:
        raise TooMuchEffort(f"it has {pixels} pixels in runs, the limit is {MOST_RUN_PIXELS}")


def _too_complex(error: TooMuchEffort) -> TooComplex:
    return TooComplex(f"the image takes too long to decode: {error}; save it anew, and plainly")


# The readers are called directly: `Image.open` would try others too, and warn by a global limit.
_OPENERS: dict[bytes, type[ImageFile.ImageFile]] = {
    b"\xff\xd8\xff": JpegImagePlugin.JpegImageFile,
    b"\x89PNG\r\n\x1a\n": PngImagePlugin.PngImageFile,
    b"GIF87a": GifImagePlugin.GifImageFile,
    b"GIF89a": GifImagePlugin.GifImageFile,
    b"BM": BmpImagePlugin.BmpImageFile,
}

_NOT_ALLOWED = {
    b"II*\x00": "TIFF",
    b"MM\x00*": "TIFF",
    b"\x00\x00\x01\x00": "ICO",
    b"%PDF": "PDF",
    b"8BPS": "PSD",
    b"\x00\x00\x00\x0cjP  ": "JPEG 2000",
    b"<svg": "SVG",
}

_NOT_ALLOWED_BRANDS = {b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIC", b"mif1": "HEIF"}


def _opener(content: bytes) -> type[ImageFile.ImageFile]:
    """The reader for a file, by its first bytes."""
    if not content:
        raise NotAnImage(f"the image is empty: send {ALLOWED_FORMATS}")
    if content[:4] == b"RIFF" and content[8:12] == b"WEBP":
        return WebPImagePlugin.WebPImageFile
    for magic, opener in _OPENERS.items():
        if content.startswith(magic):
            return opener
    found = _not_allowed(content)
    if found:
        raise FormatNotAllowed(f"{found} is not read: send {ALLOWED_FORMATS}")
    raise NotAnImage(f"the {len(content)} bytes are not an image: send {ALLOWED_FORMATS}")


def _not_allowed(content: bytes) -> str | None:
    if content[4:8] == b"ftyp":
        return _NOT_ALLOWED_BRANDS.get(content[8:12])
    return next((name for magic, name in _NOT_ALLOWED.items() if content.startswith(magic)), None)


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _upright(image: Image.Image) -> Image.Image:
    """Turn the image as its EXIF orientation says; a broken EXIF block turns nothing."""
    # Not by `ImageOps.exif_transpose`, which writes the block anew, whatever it holds.
    try:
        turn = _TURNS[image.getexif()[ExifTags.Base.Orientation]]
    except MemoryError:
        raise
    except Exception:
        return image
    return image.transpose(turn)


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):
        # Pillow would clip 16-bit grey at 255; the high byte is what it takes of 16-bit colour.
        grey, key = np.asarray(image), image.info.get("transparency")
        image = Image.fromarray((grey >> 8).clip(0, 255).astype(np.uint8))
        if key is not None:
            image.putalpha(Image.fromarray(np.where(grey == key, 0, 255).astype(np.uint8)))
    if image.has_transparency_data:
        # White, as a page would show it: what lies under transparent pixels is arbitrary.
        clear = image.convert("RGBA")
        image = Image.new("RGB", clear.size, "white")
        image.paste(clear, mask=clear)
    return image if image.mode == "RGB" else image.convert("RGB")
