"""Ray Serve: dynamic batches, a replica per core, its throughput settings; raw image bodies.

As many requests are let into a replica as it may batch, twice: by default it would be 5.
"""

from __future__ import annotations

import os
import time

# Read when Ray is imported.
os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1"}

import ray
from ray import serve
from starlette.requests import Request

from benchmarks.peers_servers.network import Network, setting


@serve.deployment(
    num_replicas=setting("workers"),
    max_ongoing_requests=2 * setting("batch"),
    ray_actor_options={"num_cpus": 1},
)
class FullNetwork:
    """A replica."""

    def __init__(self) -> None:
        self.network = Network()

    @serve.batch(max_batch_size=setting("batch"), batch_wait_timeout_s=0.0)
    async def classify(self, contents: list[bytes]) -> list[dict[str, int]]:
        """A batch."""
        images = [self.network.decode(content) for content in contents]
        return [{"index": index} for index in self.network.classify(images)]

    async def __call__(self, request: Request) -> dict[str, int]:
        """A request."""
        return await self.classify(await request.body())


if __name__ == "__main__":
    ray.init(num_cpus=setting("workers"), include_dashboard=False, log_to_driver=False)
    serve.start(http_options={"host": "127.0.0.1", "port": setting("port")})
    serve.run(FullNetwork.bind(), route_prefix="/classify")
    while True:
        time.sleep(60)
