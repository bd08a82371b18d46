"""What the Open Inference Protocol v2 tells of the server and its models; knows no HTTP."""

from __future__ import annotations

import functools
import importlib.metadata
from typing import Any

from service.protocol.specs import VERSION, input_specs, output_specs
from service.protocol.tensors import Spec
from service.registry import ServedModel

_NAME = "runtime-neural-pruning"
_EXTENSIONS = (
    "binary_tensor_data",
    "classification",
    "model_configuration",
    "model_repository",
    "model_repository(unload_dependents)",
    "parameters",
    "statistics",
)
_CONFIG_TYPES = {
    "BYTES": "TYPE_STRING",
    "FP32": "TYPE_FP32",
    "FP64": "TYPE_FP64",
    "INT64": "TYPE_INT64",
}

Json = dict[str, Any]


def server_metadata() -> Json:
    """Name, version and extensions of the server."""
    return {"name": _NAME, "version": _version(), "extensions": list(_EXTENSIONS)}


def model_metadata(model: ServedModel) -> Json:
    """Inputs, of which a request sends one, and outputs of a model."""
    return {
        "name": model.card.name,
        "versions": [VERSION],
        "platform": f"runtime_neural_pruning_{model.engine.name}",
        "inputs": [_metadata(spec) for spec in input_specs(model.card).values()],
        "outputs": [_metadata(spec) for spec in output_specs(model.card).values()],
    }


def model_config(model: ServedModel, max_images: int) -> Json:
    """The same in the form of Triton's `ModelConfig`, and how to preprocess, as parameters.

    The number of images is part of the shapes, which is what `max_batch_size` 0 means there.
    """
    card = model.card
    parameters = {
        "max_images": max_images,
        "resize": card.preprocessing.resize,
        "mean": list(card.preprocessing.mean),
        "std": list(card.preprocessing.std),
        "min_budget": card.min_fraction,
        "min_cap": card.min_cap,
    }
    return {
        "name": card.name,
        "platform": "",
        "backend": model.engine.name,
        "version_policy": {"specific": {"versions": [int(VERSION)]}},
        "max_batch_size": 0,
        "input": [_config(spec) | {"optional": True} for spec in input_specs(card).values()],
        "output": [_config(spec) for spec in output_specs(card).values()],
        "parameters": {key: {"string_value": str(value)} for key, value in parameters.items()},
    }


def model_statistics(model: ServedModel) -> Json:
    """What a model did since it was loaded, over /classify too; each image counts as a request."""
    totals, images = model.metrics.totals, model.metrics.totals.images
    return {
        "name": model.card.name,
        "version": VERSION,
        "last_inference": int(totals.last_unix_s * 1e3),
        "inference_count": images,
        "execution_count": model.batcher.batches,
        "inference_stats": {
            "success": _duration(images, totals.decode_s + totals.queue_s + totals.inference_s),
            "fail": _duration(totals.failed, 0),
            "queue": _duration(images, totals.queue_s),
            "compute_input": _duration(images, totals.decode_s),
            "compute_infer": _duration(images, totals.inference_s),
            "compute_output": _duration(0, 0),
            "cache_hit": _duration(0, 0),
            "cache_miss": _duration(0, 0),
        },
        "batch_stats": [],
    }


@functools.cache
def _version() -> str:
    try:
        return importlib.metadata.version(_NAME)
    except importlib.metadata.PackageNotFoundError:  # run from a copy of the source
        return "unknown"


def _metadata(spec: Spec) -> Json:
    return {"name": spec.name, "datatype": spec.datatype, "shape": list(spec.shape)}


def _config(spec: Spec) -> Json:
    dims = list(spec.shape)
    return {"name": spec.name, "data_type": _CONFIG_TYPES[spec.datatype], "dims": dims}


def _duration(count: int, seconds: float) -> Json:
    return {"count": count, "ns": int(seconds * 1e9)}
