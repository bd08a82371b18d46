"""What all servers share: the plain graph, by ONNX Runtime, and our decoding.

No more than numpy, Pillow and ONNX Runtime is needed. The environment says how to serve:
PEER_NETWORK (directory of the graph and of how to preprocess), PEER_PORT, PEER_WORKERS (processes),
PEER_THREADS (of ONNX Runtime in each), PEER_BATCH (the most images at once).
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnxruntime as ort

from models.preprocess import Floats, Preprocessing, preprocess

PREPROCESSING = "preprocessing.json"
MAX_PIXELS = 40_000_000


def setting(name: str) -> int:
    """A number of the environment: "port", "workers", "threads" or "batch"."""
    return int(os.environ[f"PEER_{name.upper()}"])


class Network:
    """The full network, loaded."""

    def __init__(self) -> None:
        folder = Path(os.environ["PEER_NETWORK"])
        options = ort.SessionOptions()
        options.intra_op_num_threads = setting("threads")
        (graph,) = folder.glob("*.onnx")
        self._session = ort.InferenceSession(str(graph), options, ["CPUExecutionProvider"])
        self._preprocessing = Preprocessing.from_dict(
            json.loads((folder / PREPROCESSING).read_text())
        )

    def decode(self, content: bytes) -> Floats:
        """An image file as the network's input: (3, H, W) float32."""
        return preprocess(content, self._preprocessing, MAX_PIXELS)

    def classify(self, images: Sequence[Floats]) -> list[int]:
        """The class of each image, by its index."""
        logits = self._session.run(["logits"], {"image": np.stack(images)})[0]
        return [int(index) for index in logits.argmax(1)]
