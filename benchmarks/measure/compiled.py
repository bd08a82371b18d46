"""Compiles the Triton engine's kernels for GPUs that need not be there.

    TRITON_INTERPRET=0 python -m benchmarks.measure.compiled [--networks NAME ...] [--width W]

The launches of a forward pass are recorded on the CPU and each is compiled, down to machine code.
Says that they compile and with which instructions, and nothing of their speed or results. Ends in
one JSON line.
"""

from __future__ import annotations

import argparse
import json
import re
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from benchmarks.measure.bundles import random_bundle
from models.bundle import Bundle
from service.engines import triton_agent, triton_engine, triton_layers
from service.engines.triton_tuning import Tile, Tuner

# Compute capabilities: A100 and H100.
CAPABILITIES = (80, 90)
TYPES = {
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
    torch.int32: "*i32",
    torch.int64: "*i64",
}
INSTRUCTIONS = {"tensor_cores": r"wgmma\.mma_async|mma\.sync", "async_copies": r"cp\.async\.c[ag]"}
Launch = dict[str, Any]


class Recorder:
    """Stands for a kernel, and keeps how it is launched instead of running it."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.launches: dict[str, tuple[dict[str, str], Launch, Launch]] = {}

    def __getitem__(self, grid: object) -> Any:
        return self._launch

    def _launch(
        self, *arguments: object, num_warps: int = 4, num_stages: int = 3, **rest: Any
    ) -> None:
        names = [parameter.name for parameter in self.kernel.params]
        values = dict(zip(names, arguments, strict=False)) | rest
        types, constants = {}, {}
        for parameter in self.kernel.params:
            value = values[parameter.name]
            if parameter.is_constexpr or value is None:
                types[parameter.name], constants[parameter.name] = "constexpr", value
            else:
                types[parameter.name] = TYPES[value.dtype] if torch.is_tensor(value) else "i32"
        launch = types, constants, {"num_warps": num_warps, "num_stages": num_stages}
        self.launches[str(launch)] = launch


def compile_launch(
    kernel: Any, launch: tuple[dict[str, str], Launch, Launch], capability: int
) -> dict[str, bool]:
    """Compile one launch; which instructions its code has."""
    types, constants, options = launch
    aligned = [
        (index,)
        for index, parameter in enumerate(kernel.params)
        if types[parameter.name].startswith("*") and not parameter.do_not_specialize_on_alignment
    ]
    attributes = {place: [["tt.divisibility", 16]] for place in aligned}
    source = ASTSource(kernel, types, constants, attributes)
    target = GPUTarget("cuda", capability, 32)
    code = triton.compile(source, target=target, options=options).asm["ptx"]
    return {name: bool(re.search(pattern, code)) for name, pattern in INSTRUCTIONS.items()}


def record(bundle: Bundle, tile: Tile) -> list[Recorder]:
    """The launches of all paths of a bundle, for one image."""
    kernels = [triton_layers.conv_kernel, triton_layers.max_pool_kernel, triton_agent.decide_kernel]
    recorders = [Recorder(kernel) for kernel in kernels]
    triton_layers.conv_kernel, triton_layers.max_pool_kernel = recorders[:2]
    triton_agent.decide_kernel = recorders[2]
    try:
        engine = triton_engine.TritonEngine(
            bundle, device="cpu", tuner=Tuner(default=tile), batches=(1,)
        )
        size = bundle.card.preprocessing.size
        engine.run(*(torch.zeros(shape).numpy() for shape in ((1, 3, size, size), 1, 1)))
    finally:
        triton_layers.conv_kernel, triton_layers.max_pool_kernel = kernels[:2]
        triton_agent.decide_kernel = kernels[2]
    return recorders


def main() -> None:
    """Print a line for each kernel and one of JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--networks", nargs="+", default=["mcifarnet", "vgg16", "resnet18"])
    parser.add_argument("--width", type=float, default=1.0)
    parser.add_argument("--capabilities", type=int, nargs="+", default=list(CAPABILITIES))
    flags = parser.parse_args()
    found = []
    for name in flags.networks:
        for recorder in record(random_bundle(name, 10, width=flags.width), Tile()):
            for capability in flags.capabilities:
                codes = [
                    compile_launch(recorder.kernel, launch, capability)
                    for launch in recorder.launches.values()
                ]
                row = {"network": name, "kernel": recorder.kernel.__name__}
                counts = {key: sum(code[key] for code in codes) for key in INSTRUCTIONS}
                found.append({**row, "capability": capability, "launches": len(codes), **counts})
                print(found[-1], flush=True)
    print(json.dumps({"benchmark": "compiled", "rows": found}))


if __name__ == "__main__":
    main()
