"""LitServe: batches, a worker per core, its fast queue; images as base64 in JSON, as in its guide.

Its guides leave the time to wait for a batch to the user: with none, a batch is what is waiting.
"""

from __future__ import annotations

import base64

import litserve

from benchmarks.peers_servers.network import Floats, Network, setting


class FullNetwork(litserve.LitAPI):
    """Its methods are called by LitServe, in this order."""

    def setup(self, device: str) -> None:
        """Load the network in a worker."""
        self.network = Network()

    def decode_request(self, request: dict[str, str]) -> Floats:
        """An image."""
        return self.network.decode(base64.b64decode(request["image_data"]))

    def batch(self, inputs: list[Floats]) -> list[Floats]:
        """Images are put together where they are classified."""
        return inputs

    def predict(self, images: list[Floats]) -> list[int]:
        """A batch."""
        return self.network.classify(images)

    def unbatch(self, output: list[int]) -> list[int]:
        """An answer for each image."""
        return output

    def encode_response(self, output: int) -> dict[str, int]:
        """An answer."""
        return {"index": output}


if __name__ == "__main__":
    server = litserve.LitServer(
        FullNetwork(max_batch_size=setting("batch"), batch_timeout=0.0, api_path="/classify"),
        accelerator="cpu",
        workers_per_device=setting("workers"),
        fast_queue=True,
        timeout=60,
    )
    server.run(
        host="127.0.0.1",
        port=setting("port"),
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )
