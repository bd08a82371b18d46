"""Mutations of image files: of any bytes, and of the pieces that each format is made of."""

from __future__ import annotations

import functools
import random
import struct
import zlib
from collections.abc import Callable

from benchmarks.fuzz.files import exif, image_files, png_chunk

Mutation = Callable[[random.Random, bytes], bytes]

_EDGES = (0, 1, 2, 3, 7, 8, 255, 256, 4095, 32767, 32768, 65535, 65536, 2**24, 2**31 - 1, 2**31)
_EDGES += (2**32 - 1, 2**32 - 4, 6000, 20_000)


def mutated_image(rng: random.Random) -> bytes:
    """A valid file, mutated one to four times."""
    name, content = rng.choice(list(image_files().items()))
    own = _OF_FORMAT.get(name.partition("-")[0], [])
    for _ in range(rng.choice((1, 1, 2, 4))):
        content = rng.choice(own if own and rng.random() < 0.6 else ANY)(rng, content)
    return content


def edge(rng: random.Random, bits: int = 32) -> int:
    """An integer at which something may break, or any."""
    value = rng.choice(_EDGES) if rng.random() < 0.7 else rng.getrandbits(bits)
    return value % 2**bits


def flip_bits(rng: random.Random, content: bytes) -> bytes:
    """Flip 1 to 32 bits."""
    changed = bytearray(content)
    for _ in range(rng.choice((1, 2, 8, 32)) if changed else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def flip_head(rng: random.Random, content: bytes) -> bytes:
    """Flip bits of the first 64 bytes, where the headers are."""
    return flip_bits(rng, content[:64]) + content[64:]


def cut(rng: random.Random, content: bytes) -> bytes:
    """Cut off the end."""
    return content[: rng.randrange(len(content) + 1)]


def splice(rng: random.Random, content: bytes) -> bytes:
    """Go on as another file does."""
    other = rng.choice(list(image_files().values()))
    return cut(rng, content) + other[rng.randrange(len(other)) :]


def overwrite_integer(rng: random.Random, content: bytes) -> bytes:
    """Write an edge where a length, an offset or a size may stand."""
    order, bits = rng.choice("<>"), rng.choice((16, 32))
    field = struct.pack(order + ("H" if bits == 16 else "I"), edge(rng, bits))
    at = rng.randrange(min(len(content), rng.choice((64, 2**20))) + 1)
    return content[:at] + field + content[at + len(field) :]


def move_block(rng: random.Random, content: bytes) -> bytes:
    """Delete, double, clear, or move a block."""
    start = rng.randrange(len(content) + 1)
    block = content[start : start + rng.choice((1, 4, 16, 200))]
    before, after = content[:start], content[start + len(block) :]
    to = rng.randrange(len(before) + 1)
    return rng.choice(
        (
            before + after,
            before + block * rng.choice((2, 100)) + after,
            before + bytes(len(block)) + after,
            before[:to] + block + before[to:] + after,
        )
    )


def append(rng: random.Random, content: bytes) -> bytes:
    """Let zeros, noise or the file itself follow."""
    return content + rng.choice((bytes(5000), rng.randbytes(300), content))


ANY: list[Mutation] = [
    flip_bits, flip_head, cut, splice, overwrite_integer, move_block, append
]  # fmt: skip


def shuffle_pieces(rng: random.Random, pieces: list[bytes]) -> bytes:
    """Drop, double, move or damage pieces; the first one stays in its place."""
    head, *rest = pieces
    if not rest:
        return head
    for _ in range(rng.choice((1, 1, 3))):
        at, to = rng.randrange(len(rest)), rng.randrange(len(rest))
        match rng.randrange(5):
            case 0:
                rest[at] = b""
            case 1:
                rest[to : to + 1] = [rest[to], rest[at]]
            case 2:
                rest[at], rest[to] = rest[to], rest[at]
            case 3:
                rest[at] *= rng.choice((2, 50))
            case _:
                rest[at] = flip_bits(rng, rest[at])
    return head + b"".join(rest)


@functools.cache
def _zeros(size: int) -> bytes:
    return zlib.compress(bytes(size))


# PNG


def _png_pieces(content: bytes) -> list[bytes]:
    pieces, at = [content[:8]], 8
    while at < len(content):
        end = at + 12 + int.from_bytes(content[at : at + 4])
        pieces.append(content[at:end])
        at = end
    return pieces


def png_pieces(rng: random.Random, content: bytes) -> bytes:
    """Surgery on chunks."""
    return shuffle_pieces(rng, _png_pieces(content))


def png_valid_damage(rng: random.Random, content: bytes) -> bytes:
    """Damage a chunk's data, or its length, and let its checksum be right."""
    pieces = _png_pieces(content)
    at = rng.randrange(len(pieces))
    kind, data = pieces[at][4:8], pieces[at][8:-4]
    if len(kind) == 4 and at:
        pieces[at] = png_chunk(kind, rng.choice(ANY)(rng, data))
    return b"".join(pieces)


def png_resize(rng: random.Random, content: bytes) -> bytes:
    """State another size, depth, colour type or way of interlacing."""
    size = [rng.choice((40, 32, edge(rng, 31), edge(rng, 12))) for _ in range(2)]
    depth, colour = rng.choice((1, 2, 4, 8, 16, 3)), rng.choice((0, 2, 3, 4, 6, 5))
    fields = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, rng.choice((0, 1, 2)))
    return content[:8] + png_chunk(b"IHDR", fields) + content[33:]


def png_insert(rng: random.Random, content: bytes) -> bytes:
    """Add a chunk that means something, with nonsense in it."""
    kinds = b"acTL fcTL fdAT iCCP zTXt iTXt tEXt eXIf tRNS PLTE gAMA cHRM pHYs sRGB IDAT IEND"
    kind = rng.choice(kinds.split())
    bomb = b"name\0\0" + _zeros(rng.choice((10, 10**6, 2 * 10**7)))
    entries = [(rng.getrandbits(16), rng.randrange(14), edge(rng), edge(rng)) for _ in range(9)]
    data = rng.choice((b"", rng.randbytes(rng.randrange(300)), bomb, exif(entries)))
    at = rng.choice((33, len(content) - 12, len(content)))
    return content[:at] + png_chunk(kind, data) + content[at:]


# JPEG


def _jpeg_pieces(content: bytes) -> list[bytes]:
    pieces, at = [content[:2]], 2
    while at + 4 <= len(content) and content[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(content[at + 2 : at + 4])
        pieces.append(content[at:end])
        at = end
    return [*pieces, content[at:]]


def jpeg_pieces(rng: random.Random, content: bytes) -> bytes:
    """Surgery on segments."""
    return shuffle_pieces(rng, _jpeg_pieces(content))


def jpeg_frame(rng: random.Random, content: bytes) -> bytes:
    """State another size, sampling or number of components, or another kind of frame."""
    for at in range(2, len(content) - 20):
        if content[at] == 0xFF and content[at + 1] in (0xC0, 0xC2):
            frame = bytearray(content[at : at + 19])
            match rng.randrange(4):
                case 0:
                    frame[5:9] = struct.pack(">HH", edge(rng, 16), edge(rng, 16))
                case 1:
                    frame[rng.randrange(9, 19)] = rng.randrange(256)
                case 2:
                    frame[1] = rng.choice((0xC0, 0xC1, 0xC2, 0xC3, 0xC9, 0xCA))
                case _:
                    frame[4] = rng.choice((0, 8, 12, 16))
            return content[:at] + bytes(frame) + content[at + 19 :]
    return content


def jpeg_insert(rng: random.Random, content: bytes) -> bytes:
    """Add a segment with nonsense in it, at the start or among the scans."""
    entries = [(rng.getrandbits(16), rng.randrange(14), edge(rng), edge(rng)) for _ in range(20)]
    noise = rng.randbytes(rng.randrange(200))
    tags = (
        b"Exif\0\0",
        b"JFIF\0",
        b"Adobe\0d",
        b"ICC_PROFILE\0",
        b"MPF\0II*\0",
        b"Photoshop 3.0\0",
    )
    data = rng.choice((exif(entries), noise, rng.choice(tags) + noise))
    kind = rng.choice((0xC4, 0xDB, 0xDD, 0xDA, 0xE0, 0xE1, 0xE2, 0xED, 0xEE, 0xFE, 0xD8, 0xD9))
    size = rng.choice((len(data) + 2, edge(rng, 16)))
    at = rng.choice((2, rng.randrange(2, max(3, len(content)))))
    return content[:at] + bytes((255, kind)) + struct.pack(">H", size) + data + content[at:]


# The others


def _riff_pieces(content: bytes) -> list[bytes]:
    pieces, at = [content[:12]], 12
    while at + 8 <= len(content):
        size = int.from_bytes(content[at + 4 : at + 8], "little")
        end = at + 8 + size + size % 2
        pieces.append(content[at:end])
        at = end
    return pieces


def webp_pieces(rng: random.Random, content: bytes) -> bytes:
    """Surgery on chunks, with the right size of the whole."""
    return _sized(shuffle_pieces(rng, _riff_pieces(content)))


def webp_canvas(rng: random.Random, content: bytes) -> bytes:
    """Put another extended header before the image."""
    size = struct.pack("<I", edge(rng, 24))[:3] + struct.pack("<I", edge(rng, 24))[:3]
    header = b"VP8X" + struct.pack("<II", 10, rng.getrandbits(6)) + size
    return _sized(content[:12] + header + content[12:])


def _sized(content: bytes) -> bytes:
    return b"RIFF" + struct.pack("<I", max(0, len(content) - 8)) + content[8:]


def gif_fields(rng: random.Random, content: bytes) -> bytes:
    """State another screen, frame, palette or code size."""
    frame = content.find(b",", 13)
    at = rng.choice((6, 8, 10, frame + 1, frame + 5, frame + 7, frame + 9, frame + 10))
    return content[:at] + struct.pack("<H", edge(rng, 16)) + content[at + 2 :]


def gif_insert(rng: random.Random, content: bytes) -> bytes:
    """Add an extension, or another frame, with nonsense in it."""
    frame = content.find(b",", 13)
    block = bytes((rng.choice((0xF9, 0xFE, 0xFF, 1)), 4)) + rng.randbytes(4) + b"\0"
    piece = rng.choice((b"!" + block, b"!" + block[:3], content[frame:], b"," + rng.randbytes(9)))
    return content[:frame] + piece + content[frame:]


def bmp_fields(rng: random.Random, content: bytes) -> bytes:
    """Overwrite a field of the header."""
    at, size = rng.choice(
        ((10, 4), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2), (30, 4), (34, 4), (46, 4))
    )
    value = rng.choice((edge(rng, 8 * size), rng.randrange(33)))
    return content[:at] + value.to_bytes(size, "little") + content[at + size :]


_OF_FORMAT: dict[str, list[Mutation]] = {
    "png": [png_pieces, png_valid_damage, png_resize, png_insert],
    "jpeg": [jpeg_pieces, jpeg_frame, jpeg_insert],
    "webp": [webp_pieces, webp_canvas],
    "gif": [gif_fields, gif_insert],
    "bmp": [bmp_fields],
}
