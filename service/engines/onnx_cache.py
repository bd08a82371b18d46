"""Built graphs are kept on disk, so that a service which starts again need not build them.

Whoever keeps a new one removes those that nobody took for long.

They are kept as built. ONNX Runtime could save what it made of them, but repeats names among
branches and then refuses the file; and its layout is that of one kind of processor.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import onnxruntime as ort

from models import compute, config, storage
from models.bundle import Bundle
from service.engines import onnx_agents, onnx_builder, onnx_parts, onnx_scope
from service.engines.base import DIGEST_DIGITS, code_digest
from service.engines.onnx_scope import MODEL, WEIGHTS, OnnxGraph

log = logging.getLogger(__name__)

SUM = "sha256"
# Seconds after which a graph that was not taken is removed; and what was being written by a process
# that must have been killed, as it takes seconds.
UNUSED_S, UNFINISHED_S = 30 * 24 * 3600, 3600
# Directories of graphs, and with a dot those in which they are written: others are not ours.
_OURS = re.compile(rf"(\.)?[a-z]+-[0-9a-f]{{{DIGEST_DIGITS}}}(?(1)-\w+)")

Build = Callable[[Bundle], OnnxGraph]


@contextmanager
def graph_file(bundle: Bundle, name: str, build: Build, cache_dir: Path | None) -> Iterator[Path]:
    """The file of the graph that has this name, from the cache if it is whole, else newly built.

    Without a cache, or where it cannot be written, the file exists only within the context.
    """
    kept = cache_dir / f"{name}-{_key(bundle)}" if cache_dir else None
    if kept and _take(kept):
        yield kept / MODEL
        return
    # Gone before the runtime loads a copy of its own: there is a network's worth of weights in it.
    graph = build(bundle)
    if kept and _keep(graph, kept):
        del graph
        yield kept / MODEL
        return
    with tempfile.TemporaryDirectory() as scratch:
        graph.write(Path(scratch))
        del graph
        yield Path(scratch) / MODEL


def _key(bundle: Bundle) -> str:
    """What a built graph depends on: bundle, runtime, processor, and the code that builds it."""
    made_for = f"{bundle.digest} {ort.__version__} {onnx_parts.LANES}"
    modules = compute, config, storage, onnx_agents, onnx_builder, onnx_parts, onnx_scope
    return code_digest(made_for, *modules)


def _take(directory: Path) -> bool:
    """Whether a graph is there, whole; it counts as used then."""
    # First, so that whoever finds it unused in that moment has removed it before it is read.
    with suppress(OSError):
        os.utime(directory)
    return _is_whole(directory)


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
        _prune(directory.parent)
        with tempfile.TemporaryDirectory(
            prefix=f".{directory.name}-", dir=directory.parent, ignore_cleanup_errors=True
        ) as scratch:
            graph.write(Path(scratch))
            (Path(scratch) / SUM).write_bytes(_sum(Path(scratch)))
            try:
                os.rename(scratch, directory)
            except OSError:
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


def _prune(cache_dir: Path) -> None:
    """Remove what nobody took for long, whoever may run it: who has opened a file keeps it."""
    for entry in cache_dir.iterdir():
        name = _OURS.fullmatch(entry.name)
        # Other processes may do the same.
        with suppress(OSError):
            age_s = time.time() - entry.stat().st_mtime
            if name and age_s > (UNFINISHED_S if name[1] else UNUSED_S):
                shutil.rmtree(entry, ignore_errors=True)
