"""A bundle: a directory with everything needed to serve, verified before use. No torch, no pickle.

<name>/bundle.json         its card, see `models.card`
<name>/model.safetensors   folded weights (`weight`, `scale` and `shift` per input width), head and
                           agent, in as few bits as `models.storage` says
<name>/curve.png           accuracy against compute
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as load_tensors
from safetensors.numpy import save as save_tensors

from models.card import BundleError, Card
from models.config import AgentConfig, BackboneConfig, decisions, look_sizes
from models.storage import Tensors, unpack

CARD, WEIGHTS, CURVE = "bundle.json", "model.safetensors", "curve.png"


@dataclass(frozen=True)
class Bundle:
    """A verified bundle in memory, unpacked. `digest` is the SHA-256 of card and files together."""

    card: Card
    tensors: Tensors
    path: Path
    digest: str


def write_bundle(path: Path, card: Card, packed: Tensors, curve_png: bytes | None = None) -> Card:
    """Write a bundle whole or not at all, and return its card with the files' hashes.

    Args:
        packed: as the file is to hold them, see `models.storage`.

    Raises:
        FileExistsError: `path` exists.
    """
    if path.exists():
        raise FileExistsError(f"bundle directory {path} exists: choose another, or remove it")
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{path.name}-", dir=path.parent))
    try:
        files = {WEIGHTS: save_tensors(packed)}
        if curve_png is not None:
            files[CURVE] = curve_png
        for name, content in files.items():
            (scratch / name).write_bytes(content)
        card = dataclasses.replace(card, files={n: _sha256(c) for n, c in files.items()})
        (scratch / CARD).write_text(json.dumps(card.to_json(), indent=1) + "\n")
        scratch.chmod(0o755)
        os.rename(scratch, path)
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    return card


def read_bundle(path: Path) -> Bundle:
    """Read and verify a bundle.

    Raises:
        BundleError: a file is missing, changed, of another version, or its tensors do not fit the
            dimensions on its card; the message names the bundle.
    """
    try:
        card_text = (path / CARD).read_bytes()
        values = json.loads(card_text)
    except OSError as error:
        raise BundleError(f"bundle {path} cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise BundleError(f"bundle {path}: {CARD} is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise BundleError(f"bundle {path}: {CARD} is not a JSON object")
    try:
        card = Card.from_json(values)
    except BundleError as error:
        raise BundleError(f"bundle {path}: {error}") from error
    if WEIGHTS not in card.files:
        raise BundleError(f"bundle {path}: {CARD} lists no {WEIGHTS}")
    contents = {name: _verified(path, name, digest) for name, digest in card.files.items()}
    try:
        tensors = unpack(load_tensors(contents[WEIGHTS]))
    except (ValueError, LookupError, SafetensorError) as error:
        raise BundleError(f"bundle {path}: {WEIGHTS} cannot be read: {error}") from error
    _check_tensors(path, card, tensors)
    return Bundle(card, tensors, path, _sha256(card_text))


def tensor_shapes(backbone: BackboneConfig, agent: AgentConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every tensor of a bundle."""
    k = backbone.groups
    shapes: dict[str, tuple[int, ...]] = {}
    for index, layer in enumerate(backbone.layers):
        convs = {f"conv.{index}": layer, f"projection.{index}": backbone.projection(index)}
        for name, conv in convs.items():
            if conv is not None:
                fan_in, fan_out = conv.in_channels, conv.out_channels
                shapes[f"{name}.weight"] = (fan_out, fan_in, conv.kernel, conv.kernel)
                shapes[f"{name}.scale"] = shapes[f"{name}.shift"] = (k, fan_out)
    features = backbone.in_channels(backbone.n_layers, k) * backbone.pool_to**2
    for index, (a, b) in enumerate(
        zip((features, *backbone.linears), backbone.linears, strict=False)
    ):
        shapes[f"head.{index}.weight"], shapes[f"head.{index}.bias"] = (b, a), (b,)
    return {**shapes, **_agent_shapes(backbone, agent)}


def _agent_shapes(backbone: BackboneConfig, agent: AgentConfig) -> dict[str, tuple[int, ...]]:
    k, hidden = backbone.groups, agent.hidden
    if agent.form == "paths":
        linears = {
            f"looks.{look}.{layer}": (b, a)
            for look in range(agent.deciding)
            for layer, (a, b) in enumerate(itertools.pairwise(look_sizes(backbone, agent, look)))
        }
    else:
        linears = {
            f"encoder.{index}": (agent.encoding, backbone.in_channels(index, k))
            for index in decisions(backbone, agent)
        }
        linears["decoder"] = (k, hidden)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, shape in linears.items():
        shapes[f"agent.{name}.weight"], shapes[f"agent.{name}.bias"] = shape, shape[:1]
    if agent.form != "paths":
        gates = 3 * hidden
        shapes["agent.cell.weight_ih"] = (gates, agent.cell_inputs)
        shapes["agent.cell.weight_hh"] = (gates, hidden)
        shapes["agent.cell.bias_ih"] = shapes["agent.cell.bias_hh"] = (gates,)
    return shapes


def _check_tensors(path: Path, card: Card, tensors: Tensors) -> None:
    wanted = tensor_shapes(card.backbone, card.agent)
    for name in sorted(wanted.keys() | tensors.keys()):
        found = tensors[name].shape if name in tensors else None
        if found != wanted.get(name):
            raise BundleError(
                f"bundle {path}: tensor {name} is {found or 'missing'}, "
                f"the card's dimensions want {wanted.get(name) or 'none'}"
            )
        if not np.isfinite(tensors[name]).all():
            raise BundleError(f"bundle {path}: tensor {name} holds values that are no numbers")


def _verified(path: Path, name: str, digest: str) -> bytes:
    if Path(name).name != name:
        raise BundleError(f"bundle {path}: file name {name!r} is not plain")
    try:
        content = (path / name).read_bytes()
    except (OSError, ValueError) as error:
        raise BundleError(f"bundle {path}: {name} cannot be read: {error}") from error
    if _sha256(content) != digest:
        raise BundleError(f"bundle {path}: {name} does not match its SHA-256: it was changed")
    return content


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
