"""BentoML: adaptive batches, a worker per core; images as base64 in JSON.

`bentoml serve benchmarks.peers_servers.with_bentoml:FullNetwork`
"""

from __future__ import annotations

import base64

import bentoml

from benchmarks.peers_servers.network import Network, setting


@bentoml.service(
    workers=setting("workers"), traffic={"timeout": 60}, logging={"access": {"enabled": False}}
)
class FullNetwork:
    """One in each worker."""

    def __init__(self) -> None:
        self.network = Network()

    @bentoml.api(batchable=True, max_batch_size=setting("batch"), max_latency_ms=10_000)
    def classify(self, images: list[str]) -> list[int]:
        """A batch."""
        contents = [base64.b64decode(image) for image in images]
        return self.network.classify([self.network.decode(content) for content in contents])
