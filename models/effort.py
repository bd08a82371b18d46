"""What decoding an image may cost: bounds on its pieces, scans and runs, and the pixels it states.

A small file can keep a decoder busy for minutes: a JPEG by scans, each of which visits the whole
image for some bytes, or by EXIF in parts, the other formats by millions of empty pieces, which
Pillow walks in Python, or by text that inflates.
"""

from __future__ import annotations

import re
from io import BytesIO

# Of a file of 32 MiB in pieces of 1 KiB, a PNG's reader asks for about 130,000.
MOST_READS = 150_000
# Files have one or a few. Of a JPEG's EXIF each part copies all before it, and some hundred bytes
# of a PNG's compressed text or profile may inflate to a MiB.
MOST_METADATA = 100
# Progressive encoders write about ten. Of a large image fewer are read, as each visits all of its
# pixels: as many as visit `MOST_VISITS` in all, but 20 of any.
MOST_SCANS, ALWAYS_SCANS = 100, 20
MOST_VISITS = 400_000_000
MOST_SEGMENTS = 2_000
# Pillow unpacks runs in Python, pixel by pixel where lines are cut short.
MOST_RUN_PIXELS = 4_000_000

_EXIF, _INFLATED = b"Exif\0\0", (b"iCCP", b"iTXt", b"zTXt")
_MARKER = re.compile(rb"\xff+[^\x00\xff]")
_END, _SCAN = 0xD9, 0xDA
# Markers without a segment: restarts, and one that is private to arithmetic coding.
_BARE = (0x01, *range(0xD0, 0xD9))
# Where a file that begins so states its sides; it may do so again, and only one of them holds. What
# no reader takes, a JPEG of other than 1, 3 or 4 channels or 8 bits, is not found.
_SIDES = {
    b"\x89PNG": re.compile(rb"IHDR(?=(.{4})(.{4}))", re.DOTALL),
    b"\xff\xd8": re.compile(
        rb"\xff[\xc0-\xc3\xc5-\xc7\xc9-\xcb\xcd-\xcf](?=\0[\x0b\x11\x14]\x08(..)(..))", re.DOTALL
    ),
}
# By a WebP's first chunk: from which byte on it states them, bits from the first to the second,
# and bits of each; but for "VP8 " less 1.
_WEBP_SIDES = {b"VP8 ": (26, 16, 14), b"VP8L": (21, 14, 14), b"VP8X": (24, 24, 24)}


class TooMuchEffort(ValueError):
    """Reading on would cost more than any real image does; the message says what of."""


class BoundedFile(BytesIO):
    """A file in memory that may be read in `MOST_READS` pieces, whatever reads it.

    Of metadata that costs more than its bytes `MOST_METADATA` pieces may be read.
    """

    reads = metadata = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """Read on.

        Raises:
            TooMuchEffort: once too often.
        """
        self.reads += 1
        if self.reads > MOST_READS:
            raise TooMuchEffort(f"it is read in more than {MOST_READS} pieces, which is the limit")
        piece = super().read(size)
        # A JPEG's segments are read whole, of a PNG's chunks first their length and kind.
        if piece.startswith(_EXIF) or (size == 8 and piece.endswith(_INFLATED)):
            self.metadata += 1
            if self.metadata > MOST_METADATA:
                raise TooMuchEffort(
                    f"it has more than {MOST_METADATA} pieces of EXIF, profiles or compressed "
                    "text, which is the limit"
                )
        return piece


def stated_pixels(content: bytes) -> int | None:
    """Pixels of an image file by what it states, never fewer than its reader would find.

    That takes microseconds, for a JPEG or PNG about one for each KiB.

    Returns: None for a file of another format than JPEG, PNG and WebP, or that states nothing.
    """
    for magic, sides in _SIDES.items():
        if content.startswith(magic):
            pairs: list[tuple[bytes, bytes]] = sides.findall(content)
            return max((int.from_bytes(x) * int.from_bytes(y) for x, y in pairs), default=None)
    if content[8:12] != b"WEBP" or content[12:16] not in _WEBP_SIDES:
        return None
    start, apart, bits = _WEBP_SIDES[content[12:16]]
    both, most = int.from_bytes(content[start : start + 6], "little"), (1 << bits) - 1
    return ((both & most) + 1) * ((both >> apart & most) + 1)


def check_scans(content: bytes, position: int, pixels: int) -> None:
    """Refuse a JPEG of too many scans, before they are decoded.

    Args:
        content: the whole file.
        position: of the first scan's data.

    Raises:
        TooMuchEffort: it has more than so many pixels may have, or more than `MOST_SEGMENTS`
            between them.
    """
    most = min(max(MOST_VISITS // pixels, ALWAYS_SCANS), MOST_SCANS)
    # Nearly always there are too few markers, whatever they are; counting them takes microseconds.
    if content.count(b"\xff", position) - content.count(b"\xff\x00", position) < most:
        return
    scans, segments = 1, 0
    while found := _MARKER.search(content, position):
        position, kind = found.end(), content[found.end() - 1]
        if kind in _BARE:
            continue
        if kind == _END:
            return
        segments += 1
        scans += kind == _SCAN
        if scans > most or segments > MOST_SEGMENTS:
            raise TooMuchEffort(
                f"it has more than {most} scans, or {MOST_SEGMENTS} segments between them, "
                "which are the limits"
            )
        position += int.from_bytes(content[position : position + 2])
