"""MLServer: adaptive batches, a worker per core; images as base64 in the Open Inference Protocol.

`mlserver start` a directory with the two files that `write_mlserver_settings` writes.
"""

from __future__ import annotations

import numpy as np
from mlserver import MLModel
from mlserver.codecs import Base64Codec, NumpyCodec
from mlserver.types import InferenceRequest, InferenceResponse

from benchmarks.peers_servers.network import Network


class FullNetwork(MLModel):
    """One in each worker."""

    async def load(self) -> bool:
        """Load the network."""
        self.network = Network()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """A batch."""
        contents = Base64Codec.decode_input(payload.inputs[0])
        labels = self.network.classify([self.network.decode(content) for content in contents])
        output = NumpyCodec.encode_output("index", np.array(labels)[:, None])
        return InferenceResponse(model_name=self.name, outputs=[output])
