from __future__ import annotations

from importlib.metadata import version

import numpy as np

from service.batcher import Answer
from service.limits import Limits
from service.protocol.describe import (
    model_config,
    model_metadata,
    model_statistics,
    server_metadata,
)
from service.registry import ServedModel

LIMITS = Limits(0.5, 0.1, None)


def test_server_metadata_lists_the_extensions() -> None:
    found = server_metadata()
    assert found["version"] == version(found["name"])
    assert {"binary_tensor_data", "classification", "statistics"} <= set(found["extensions"])


def test_model_metadata_tells_shapes(model: ServedModel) -> None:
    found = model_metadata(model)
    assert (found["name"], found["versions"]) == ("tiny", ["1"])
    assert found["inputs"] == [
        {"name": "image", "datatype": "BYTES", "shape": [-1]},
        {"name": "input", "datatype": "FP32", "shape": [-1, 3, 8, 8]},
    ]
    assert {output["name"]: output["shape"] for output in found["outputs"]} == {
        "probabilities": [-1, 3],
        "logits": [-1, 3],
        "label": [-1],
        "widths": [-1, 3],
        "macs": [-1],
        "fraction": [-1],
    }


def test_model_config_agrees_with_the_metadata(model: ServedModel) -> None:
    metadata, config = model_metadata(model), model_config(model, 4)
    for plural, singular in (("inputs", "input"), ("outputs", "output")):
        for told, configured in zip(metadata[plural], config[singular], strict=True):
            assert (told["name"], told["shape"]) == (configured["name"], configured["dims"])
            kind = configured["data_type"].replace("STRING", "BYTES")
            assert kind == f"TYPE_{told['datatype']}"
    assert config["max_batch_size"] == 0
    assert config["parameters"]["max_images"] == {"string_value": "4"}
    assert config["parameters"]["mean"] == {"string_value": "[0.5, 0.5, 0.5]"}


def test_model_statistics_sum_over_images(model: ServedModel) -> None:
    totals = model.metrics.totals
    zeros, ones = np.zeros(3, np.float32), np.ones(3, np.int64)
    totals.failed = 1
    for _ in range(2):
        totals.add(Answer(zeros, zeros, ones, ones, 9, LIMITS, 0.5, 0.25, 0.0), 0.125)
    found = model_statistics(model)
    stats = found["inference_stats"]
    assert found["inference_count"] == 2
    assert found["last_inference"] > 1.6e12
    assert stats["success"] == {"count": 2, "ns": 1_750_000_000}
    assert stats["queue"] == {"count": 2, "ns": 1_000_000_000}
    assert stats["compute_input"] == {"count": 2, "ns": 250_000_000}
    assert stats["compute_infer"] == {"count": 2, "ns": 500_000_000}
    assert stats["fail"]["count"] == 1
