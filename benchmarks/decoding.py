"""What decoding costs, by format and size, and what reading a JPEG at a lower resolution saves.

For each format and size: milliseconds of CPU from the file's bytes to the network's input, the
median of several rounds; then images a second with `--threads` at once. "Whole" decodes a JPEG in
full, as every other format is. Prints a table and ends in one JSON line.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from io import BytesIO

import numpy as np
from PIL import Image

from benchmarks.measure.timing import Spread, in_turn
from models.preprocess import Preprocessing, decode, preprocess

MAX_PIXELS = 10**9
FORMATS: dict[str, tuple[str, dict[str, object]]] = {
    "JPEG": ("JPEG", {"quality": 85}),
    "JPEG, progressive": ("JPEG", {"quality": 85, "progressive": True}),
    "PNG": ("PNG", {"compress_level": 1}),
    "WebP": ("WEBP", {"quality": 80, "method": 0}),
    "GIF": ("GIF", {}),
    "BMP": ("BMP", {}),
}


@dataclass(frozen=True)
class Row:
    """What a file of some format and size takes; `whole_ms` is None where it is the same."""

    kind: str
    width: int
    height: int
    size_bytes: int
    ms: float
    whole_ms: float | None
    images_per_s: float


def scene(width: int, height: int) -> Image.Image:
    """Soft shapes with a little noise: about as hard to compress as a photograph."""
    rng = np.random.default_rng(0)
    soft = Image.fromarray(
        rng.integers(0, 256, (max(2, height // 40), max(2, width // 40), 3), np.uint8)
    )
    pixels = np.asarray(soft.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    pixels += rng.normal(0, 4, pixels.shape).astype(np.int16)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def measure(
    kind: str, image: Image.Image, to: Preprocessing, threads: int, rounds: int, seconds: float
) -> Row:
    """Time one format at one size."""
    format_name, options = FORMATS[kind]
    stream = BytesIO()
    image.save(stream, format_name, **options)
    content = stream.getvalue()

    def whole() -> None:
        to.normalise(to.pixels(decode(content, MAX_PIXELS)))

    def served() -> None:
        preprocess(content, to, MAX_PIXELS)

    rivals = {"served": served} | ({"whole": whole} if format_name == "JPEG" else {})
    taken = in_turn(rivals, rounds, time.process_time)
    ms = {name: 1e3 * Spread.of(times).median for name, times in taken.items()}
    runs = threads * (1 + round(1e3 * seconds / ms["served"]))
    with ThreadPoolExecutor(threads) as pool:
        started = time.perf_counter()
        list(pool.map(lambda _: served(), range(runs)))
        rate = runs / (time.perf_counter() - started)
    return Row(kind, *image.size, len(content), ms["served"], ms.get("whole"), rate)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--sizes", nargs="+", default=["32x32", "640x480", "4000x3000"])
    parser.add_argument("--size", type=int, default=224, help="side of the network's input")
    parser.add_argument("--resize", type=int, default=256, help="shorter side before the crop")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seconds", type=float, default=1, help="with all threads at once")
    parser.add_argument("--data", help=argparse.SUPPRESS)  # `make bench` gives it to all
    flags = parser.parse_args()
    to = Preprocessing(flags.size, flags.resize, (0.5,) * 3, (0.25,) * 3)
    print(
        f"to {to.size} × {to.size}, {flags.threads} threads\n\n"
        "| format | size | kB | ms | ms, whole | images/s |\n|---|---|---|---|---|---|"
    )
    rows = []
    for size in flags.sizes:
        width, height = map(int, size.split("x"))
        image = scene(width, height)
        for kind in FORMATS:
            row = measure(kind, image, to, flags.threads, flags.rounds, flags.seconds)
            whole = "" if row.whole_ms is None else f"{row.whole_ms:.2f}"
            print(
                f"| {kind} | {width} × {height} | {row.size_bytes / 1e3:.1f} | {row.ms:.2f} "
                f"| {whole} | {row.images_per_s:.0f} |",
                flush=True,
            )
            rows.append(row)
    settings = {"size": to.size, "resize": to.resize, "threads": flags.threads}
    print(json.dumps({"benchmark": "decoding", **settings, "rows": [asdict(row) for row in rows]}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
