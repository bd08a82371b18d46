"""The GPU engine: a bundle on Triton's kernels, each batch size one CUDA graph.

A graph runs the agent's paths one after another. On each all images of the batch are launched; the
agent's step, between two paths, writes into a table on the device which images run which of the
later ones, and a tile of an image that does not run a path exits at once. So nothing returns to
the host before the end.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import triton
from torch import Tensor

from models.bundle import Bundle
from models.compute import cap_macs
from models.config import BackboneConfig
from service.engines import triton_kernels, triton_layers, triton_tuning
from service.engines.base import (
    Caps,
    Engine,
    Floats,
    Integers,
    Result,
    code_digest,
    every_way,
    is_plain,
)
from service.engines.reference import TorchEngine
from service.engines.triton_agent import Rows, TritonAgent
from service.engines.triton_network import TritonNetwork
from service.engines.triton_tuning import Tuner, gpu_timer

# Batches are filled up to one of these; larger ones are split.
BATCHES = (1, 2, 4, 8, 16, 32)
# Most that bfloat16 may change logits, as a share of the largest.
TOLERANCE = 0.1
# The oldest that multiplies bfloat16.
LEAST_CAPABILITY = (8, 0)
# The kernels count values in int32.
MOST_VALUES = 2**31 - 1


class CannotRun(RuntimeError):
    """The engine does not suit the machine or the bundle; the message says why."""


def check(bundle: Bundle) -> None:
    """Check that the engine can run a bundle here.

    Raises:
        CannotRun: it cannot.
    """
    if not torch.cuda.is_available():
        raise CannotRun("there is no CUDA GPU that torch can use")
    if torch.cuda.get_device_capability() < LEAST_CAPABILITY:
        raise CannotRun(f"{torch.cuda.get_device_name()} does not compute in bfloat16")
    if bundle.card.agent.form != "paths":
        raise CannotRun(
            f"the agent of {bundle.card.name} decides layer by layer (form "
            f"{bundle.card.agent.form!r}), and the engine runs those that choose among paths"
        )
    values = max(BATCHES) * _largest_map(bundle.card.backbone)
    if values > MOST_VALUES:
        raise CannotRun(
            f"the largest maps of {bundle.card.name} have {values} values in a batch of "
            f"{max(BATCHES)}, and the kernels reach {MOST_VALUES}"
        )


def _largest_map(backbone: BackboneConfig) -> int:
    """Values of the largest map of one image, before its pooling."""
    maps = [(backbone.image_size, backbone.in_channels(0, backbone.groups))]
    maps += zip(backbone.sizes(), (layer.out_channels for layer in backbone.layers), strict=False)
    return max(side**2 * channels for side, channels in maps)


def check_answers(engine: Engine, bundle: Bundle, batches: Sequence[int] = BATCHES) -> None:
    """Compare an engine with the reference on noise, along the plain network and every path.

    Args:
        batches: sizes of batches in which it is asked, as each has tiles and a graph of its own.

    Raises:
        CannotRun: it computes something else, as miscompiled kernels would.
    """
    size, (penalty, cap) = bundle.card.preprocessing.size, every_way(bundle.card.table())
    noise = np.random.default_rng(0).normal(size=(len(cap), 3, size, size)).astype(np.float32)
    wanted = TorchEngine(bundle).run(noise, penalty, cap)
    largest, numbers = np.abs(wanted.logits).max(), np.arange(len(cap))
    for batch in batches:
        # All rows, and the first ones again where they do not fill the last batch.
        for rows in np.resize(numbers, (math.ceil(len(cap) / batch), batch)):
            found = engine.run(noise[rows], penalty[rows], cap[rows])
            off = np.abs(found.logits - wanted.logits[rows]).max() / largest
            same = (found.widths == wanted.widths[rows]).all()
            same &= (found.macs == wanted.macs[rows]).all()
            # Not a number is not within the tolerance either.
            if not (same and off <= TOLERANCE):
                raise CannotRun(
                    f"its answers on noise differ from the reference in batches of {batch}, "
                    f"logits by {off:.0%}"
                )


class TritonEngine:
    """Runs a bundle with Triton's kernels, rows with different paths together."""

    name = "triton"

    def __init__(
        self,
        bundle: Bundle,
        cache_dir: Path | None = None,
        *,
        device: str = "cuda",
        dtype: torch.dtype = torch.bfloat16,
        tuner: Tuner | None = None,
        batches: tuple[int, ...] = BATCHES,
    ) -> None:
        """Load a bundle, find its tiles and capture its graphs.

        Args:
            cache_dir: where the tiles that were found are kept; by default nowhere.
            device: "cpu" where Triton interprets.
            dtype: of weights and maps; sums, normalisation and the agent are float32.
            tuner: by default one that times tiles on the GPU.
            batches: the sizes of batches that are prepared.
        """
        tuner = tuner or Tuner(_tiles_file(cache_dir), gpu_timer)
        program = _Program(bundle, torch.device(device), dtype, tuner)
        self._paths = np.array(bundle.card.agent.paths, np.int64)
        self._full = program.full
        prepare = captured if device == "cuda" else functools.partial
        self._batches = {n: Batch(program, n, prepare) for n in batches}
        tuner.save()

    def run(self, images: Floats, penalty: Floats, cap: Caps) -> Result:
        """Classify images, each by its own penalty and cap; see `service.engines.base.Engine`."""
        parts, most = [], max(self._batches)
        for start in range(0, max(len(images), 1), most):
            part = slice(start, start + most)
            batch = self.load(images[part], penalty[part], cap[part])
            batch.compute()
            parts.append(batch.read(len(images[part])))
        logits, chosen, spent = (np.concatenate(part) for part in zip(*parts, strict=True))
        return Result(logits, self._paths[chosen], spent)

    def load(self, images: Floats, penalty: Floats, cap: Caps) -> Batch:
        """Copy images, no more than the largest batch takes, to the batch that will do."""
        batch = self._batches[min(size for size in self._batches if size >= len(images))]
        batch.load(images, penalty, cap_macs(cap, self._full), is_plain(penalty, cap))
        return batch


class _Program:
    """What is computed for a batch of any size; all that it reads and writes is on the device."""

    def __init__(
        self, bundle: Bundle, device: torch.device, dtype: torch.dtype, tuner: Tuner
    ) -> None:
        self.network = TritonNetwork(bundle, device, dtype, tuner)
        self.agent = TritonAgent(bundle, device)
        self.device, self.dtype = device, dtype
        self.size, self.classes = bundle.card.backbone.image_size, bundle.card.backbone.classes
        table = bundle.card.table()
        self.full, self.first = table.full, table.looks[0]

    def __call__(
        self, images: Tensor, first: Tensor, spent: Tensor, rows: Rows, logits: Tensor
    ) -> None:
        """Run a batch.

        Args:
            images: (N, 3, H, W) float32.
            first, spent: (N,) int64, each image's first path and its MACs; -1 for the path of
                images to leave alone.
            rows: `penalty` and `limits` are read, the rest is written.
            logits: (N, classes) float32, written.
        """
        agent = self.agent
        rows.chosen.copy_(first)
        rows.spent.copy_(spent)
        numbers = torch.arange(len(agent.steps), device=self.device)
        starts = (numbers[:, None] == first)[:, None]
        torch.mul(agent.paths[:, :, None], starts, out=rows.widths)
        n, _, height, width = images.shape
        x = torch.empty((n, height, width, 3), dtype=self.dtype, device=self.device)
        x.copy_(images.permute(0, 2, 3, 1))
        mirrored = x.flip(2) if any(agent.mirrored) else x
        for look, path in enumerate(agent.steps):
            before = logits.clone()
            view = mirrored if agent.mirrored[look] else x
            means = self.network(view, rows.widths[look], path, logits)
            if look and agent.blend:
                # Of what began here, as the plain network does, there is no answer before: what
                # was there may be no number, which would come in by a weight of 0 too.
                began = (first == look)[:, None]
                logits.copy_(torch.where(began, logits, logits.lerp(before, agent.blend)))
            if look < agent.deciding:
                agent.decide(look, logits, means, rows)


class Batch:
    """A program for batches of one size: its memory, and the captured graph.

    Attributes:
        compute: runs what was loaded; on a GPU it returns before that is done.
    """

    def __init__(
        self, program: _Program, size: int, prepare: Callable[..., Callable[[], object]]
    ) -> None:
        self._program, self._size = program, size
        new = functools.partial(torch.zeros, device=program.device)
        paths, steps = program.agent.paths.shape
        self._images = new(size, 3, program.size, program.size)
        self._penalty, self._logits = new(size), new(size, program.classes)
        # What the host sets and reads beside them, each as one copy.
        self._asked = new(3, size, dtype=torch.int64)
        self._reached = new(2, size, dtype=torch.int64)
        widths = new(paths, steps, size, dtype=torch.int32)
        first, start, limits = self._asked
        rows = Rows(self._penalty, limits, widths, *self._reached)
        self.compute = prepare(program, self._images, first, start, rows, self._logits)

    def load(
        self, images: Floats, penalty: Floats, limits: Integers, plain: npt.NDArray[np.bool_]
    ) -> None:
        """Set what is asked: N ≤ size images; which of them run the plain network."""
        n, program = len(images), self._program
        asked = np.full((3, self._size), -1, np.int64)
        asked[0, :n] = np.where(plain, len(program.agent.steps) - 1, 0)
        asked[1, :n] = np.where(plain, program.full, program.first)
        asked[2, :n] = limits
        self._images[:n].copy_(torch.from_numpy(images))
        self._penalty[:n].copy_(torch.from_numpy(penalty))
        self._asked.copy_(torch.from_numpy(asked))

    def read(self, n: int) -> tuple[Floats, Integers, Integers]:
        """Logits (n, classes), numbers of paths (n,) and MACs (n,) of the first n images."""
        # Copies also where this is the CPU, as the next batch goes to the same memory.
        logits = self._logits[:n].to("cpu", copy=True)
        chosen, spent = self._reached[:, :n].to("cpu", copy=True)
        return logits.numpy(), chosen.numpy(), spent.numpy()


def captured(compute: Callable[..., object], *arguments: object) -> Callable[[], object]:
    """A computation on the GPU as a CUDA graph, which is launched as one."""
    # Compiles the kernels and finds the tiles, neither of which can be captured.
    side = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        compute(*arguments)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    # Other engines may run meanwhile, on threads of their own.
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):
        compute(*arguments)
    # The graph knows addresses alone: whoever holds it must hold what lies there too.
    return functools.partial(_replay, graph, compute, arguments)


def _replay(graph: torch.cuda.CUDAGraph, *held: object) -> None:
    graph.replay()


def _tiles_file(cache_dir: Path | None) -> Path | None:
    if cache_dir is None:
        return None
    device = torch.cuda.get_device_name().replace(" ", "-").replace("/", "-")
    digest = code_digest(triton.__version__, triton_kernels, triton_layers, triton_tuning)
    return cache_dir / f"tiles-{device}-{digest}.json"
