"""Built graphs are kept on disk, so that a service which starts again need not build them.

They are kept as built. ONNX Runtime could save what it made of them, but repeats names among
branches and then refuses the file; and its layout is that of one kind of processor.
"""

from __future__ import annotations

import hashlib
import inspect
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import onnxruntime as ort

from models import compute, config
from models.bundle import Bundle
from service.engines import onnx_agents, onnx_builder, onnx_parts, onnx_scope
from service.engines.onnx_scope import MODEL, WEIGHTS, OnnxGraph

log = logging.getLogger(__name__)

SUM = "sha256"

Build = Callable[[Bundle], OnnxGraph]


@contextmanager
def graph_file(bundle: Bundle, name: str, build: Build, cache_dir: Path | None) -> Iterator[Path]:
    """The file of the graph that has this name, from the cache if it is whole, else newly built.

    Without a cache, or where it cannot be written, the file exists only within the context.
    """
    kept = cache_dir / f"{name}-{_key(bundle)}" if cache_dir else None
    if kept and _is_whole(kept):
        yield kept / MODEL
        return
    graph = build(bundle)
    if kept and _keep(graph, kept):
        yield kept / MODEL
        return
    with tempfile.TemporaryDirectory() as scratch:
        graph.write(Path(scratch))
        yield Path(scratch) / MODEL


def _key(bundle: Bundle) -> str:
    """What a built graph depends on: bundle, runtime, processor, and the code that builds it."""
    made_for = f"{bundle.digest} {ort.__version__} {onnx_parts.LANES}"
    digest = hashlib.sha256(made_for.encode())
    for module in (compute, config, onnx_agents, onnx_builder, onnx_parts, onnx_scope):
        digest.update(inspect.getsource(module).encode())
    return digest.hexdigest()[:24]


def _is_whole(directory: Path) -> bool:
    try:
        return (directory / SUM).read_bytes() == _sum(directory)
    except OSError:
        return False


def _sum(directory: Path) -> bytes:
    digests = []
    for name in (MODEL, WEIGHTS):
        with (directory / name).open("rb") as file:
            digests.append(hashlib.file_digest(file, "sha256").hexdigest())
    return " ".join(digests).encode()


def _keep(graph: OnnxGraph, directory: Path) -> bool:
    """Write a graph whole or not at all, in place of what was there."""
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(
            prefix=f".{directory.name}-", dir=directory.parent, ignore_cleanup_errors=True
        ) as scratch:
            graph.write(Path(scratch))
            (Path(scratch) / SUM).write_bytes(_sum(Path(scratch)))
            # Where another process kept the same graph first, it may be about to read it.
            if not _is_whole(directory):
                shutil.rmtree(directory, ignore_errors=True)
                os.rename(scratch, directory)
    except OSError as error:
        if _is_whole(directory):
            return True
        log.warning("built graphs are not kept: cache directory %s: %s", directory.parent, error)
        return False
    return True
