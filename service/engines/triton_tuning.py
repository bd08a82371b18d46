"""Which tile a convolution runs fastest with: tried once for each shape, and kept on disk."""

from __future__ import annotations

import json
import logging
import math
import os
import tempfile
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import triton

log = logging.getLogger(__name__)

Trial = Callable[["Tile"], object]
# Milliseconds that a call takes; infinite if it cannot run.
Timer = Callable[[Callable[[], object]], float]

# Below this Triton's matrix product does not go.
LEAST_SIDE = 16


@dataclass(frozen=True)
class Tile:
    """A part of a convolution that one program computes.

    Attributes:
        m: positions. n: output channels. k: input channels in one step of the reduction.
        warps: threads of it, in 32s. stages: steps whose inputs are under way at once.
    """

    m: int = 64
    n: int = 64
    k: int = 32
    warps: int = 4
    stages: int = 3

    def clipped(self, reduced: int, outputs: int) -> Tile:
        """The tile for a layer that reduces over fewer values, or has fewer outputs."""
        most_n = max(triton.next_power_of_2(outputs), LEAST_SIDE)
        most_k = max(triton.next_power_of_2(reduced), LEAST_SIDE)
        return replace(self, n=min(self.n, most_n), k=min(self.k, most_k))


CANDIDATES = (
    Tile(256, 64, 64, 8, 3),
    Tile(128, 128, 64, 8, 3),
    Tile(128, 64, 64, 4, 3),
    Tile(64, 128, 64, 4, 3),
    Tile(64, 64, 64, 4, 4),
    Tile(64, 32, 64, 4, 4),
    Tile(32, 64, 64, 4, 4),
    Tile(16, 64, 128, 4, 4),
    Tile(16, 32, 128, 2, 5),
)


def gpu_timer(call: Callable[[], object]) -> float:
    """Milliseconds on the GPU, the middle one of several runs."""
    try:
        found = triton.testing.do_bench(call, warmup=3, rep=10, return_mode="median")
    except triton.runtime.errors.OutOfResources:
        return math.inf
    return float(found)


class Tuner:
    """Finds and remembers tiles."""

    def __init__(
        self, file: Path | None = None, timer: Timer | None = None, default: Tile | None = None
    ) -> None:
        """Read what was found before.

        Args:
            file: where that is kept; a new one for each kind of GPU and version of Triton.
            timer: None tries nothing.
            default: for shapes that are not known then.
        """
        self._file, self._timer, self._new = file, timer, 0
        self._default = default or Tile()
        self._tiles = _read(file) if file else {}

    def tile(self, key: str, reduced: int, outputs: int, trial: Trial) -> Tile:
        """The tile for a convolution.

        Args:
            key: all that its speed depends on.
            reduced, outputs: values that a step of its reduction can take; output channels.
            trial: runs it with a tile.
        """
        if key not in self._tiles:
            if self._timer is None:
                return self._default.clipped(reduced, outputs)
            self._tiles[key] = self._fastest(reduced, outputs, trial, self._timer)
            self._new += 1
        return self._tiles[key]

    def _fastest(self, reduced: int, outputs: int, trial: Trial, timer: Timer) -> Tile:
        tiles = dict.fromkeys(tile.clipped(reduced, outputs) for tile in CANDIDATES)
        return min(tiles, key=lambda tile: timer(lambda: trial(tile)))

    def save(self) -> None:
        """Keep what is new, beside what other engines found meanwhile."""
        if not self._new or self._file is None:
            return
        found = {key: asdict(tile) for key, tile in (_read(self._file) | self._tiles).items()}
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=self._file.parent) as scratch:
                new = Path(scratch, self._file.name)
                new.write_text(json.dumps(found, indent=1, sort_keys=True))
                os.replace(new, self._file)
        except OSError as error:
            log.warning("tiles are not kept: %s: %s", self._file, error)
        log.info("tiles found for convolutions", extra={"shapes": self._new})
        self._new = 0


def _read(file: Path) -> dict[str, Tile]:
    """Tiles by their key; none if the file does not exist or is of another form."""
    try:
        return {key: Tile(**tile) for key, tile in json.loads(file.read_bytes()).items()}
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, TypeError, AttributeError) as error:
        log.warning("tiles are found anew: %s: %s", file, error)
        return {}
