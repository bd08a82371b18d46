"""What decoding an image may cost beyond its pixels: bounds on its pieces, scans and runs.

A small file can keep a decoder busy for minutes: a JPEG by scans, each of which visits the whole
image for some bytes, the other formats by millions of empty pieces, which Pillow walks in Python.
"""

from __future__ import annotations

import re
from io import BytesIO

# Of a file of 32 MiB in pieces of 1 KiB, a PNG's reader asks for about 130,000.
MOST_READS = 150_000
# Progressive encoders write about ten.
MOST_SCANS = 100
MOST_SEGMENTS = 2_000
# Pillow unpacks runs in Python, pixel by pixel where lines are cut short.
MOST_RUN_PIXELS = 4_000_000

_MARKER = re.compile(rb"\xff+[^\x00\xff]")
_END, _SCAN = 0xD9, 0xDA
# Markers without a segment: restarts, and one that is private to arithmetic coding.
_BARE = (0x01, *range(0xD0, 0xD9))


class TooMuchEffort(ValueError):
    """Reading on would cost more than any real image does; the message says what of."""


class BoundedFile(BytesIO):
    """A file in memory that may be read in `MOST_READS` pieces, whatever reads it."""

    reads = 0

    def read(self, size: int | None = -1, /) -> bytes:
        """Read on.

        Raises:
            TooMuchEffort: once too often.
        """
        self.reads += 1
        if self.reads > MOST_READS:
            raise TooMuchEffort(f"it is read in more than {MOST_READS} pieces, which is the limit")
        return super().read(size)


def check_scans(content: bytes, position: int) -> None:
    """Refuse a JPEG of too many scans, before they are decoded.

    Args:
        content: the whole file.
        position: of the first scan's data.

    Raises:
        TooMuchEffort: it has more than `MOST_SCANS`, or more than `MOST_SEGMENTS` between them.
    """
    # Nearly always there are too few markers, whatever they are; counting them takes microseconds.
    if content.count(b"\xff", position) - content.count(b"\xff\x00", position) < MOST_SCANS:
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
        if scans > MOST_SCANS or segments > MOST_SEGMENTS:
            raise TooMuchEffort(
                f"it has more than {MOST_SCANS} scans, or {MOST_SEGMENTS} segments between them, "
                "which are the limits"
            )
        position += int.from_bytes(content[position : position + 2])
