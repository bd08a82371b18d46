"""Built graphs are kept on disk, so that a service which starts again need not build them."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import onnx
import onnxruntime as ort

from models.bundle import Bundle
from service.engines.onnx_builder import VERSION

log = logging.getLogger(__name__)

Build = Callable[[Bundle], onnx.ModelProto]


def cached_graph(bundle: Bundle, build: Build, cache_dir: Path | None) -> Path | bytes:
    """A graph from the cache, built if it is not there or not whole.

    Returns: the file to load; or the graph itself, if there is no cache or it cannot be written.
    """
    if cache_dir is None:
        return _serialised(build(bundle))
    path = cache_dir / f"{build.__name__}-{_key(bundle)}.onnx"
    if _is_whole(path):
        return path
    content = _serialised(build(bundle))
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        # The sum comes last: until it is there, and after a crash, the graph counts as missing.
        _write(path, content)
        _write(_sum_path(path), hashlib.sha256(content).hexdigest().encode())
    except OSError as error:
        log.warning("built graphs are not kept: cache directory %s: %s", cache_dir, error)
        return content
    return path


def _serialised(graph: onnx.ModelProto) -> bytes:
    content: bytes = graph.SerializeToString()
    return content


def _key(bundle: Bundle) -> str:
    """What a built graph depends on."""
    parts = f"{bundle.digest} {VERSION} {ort.__version__}"
    return hashlib.sha256(parts.encode()).hexdigest()[:24]


def _sum_path(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _is_whole(path: Path) -> bool:
    try:
        wanted = _sum_path(path).read_text()
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == wanted
    except (OSError, UnicodeDecodeError):
        return False


def _write(path: Path, content: bytes) -> None:
    """Write a file whole or not at all."""
    handle, scratch = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
        os.replace(scratch, path)
    except BaseException:
        Path(scratch).unlink(missing_ok=True)
        raise
