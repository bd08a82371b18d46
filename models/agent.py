"""The decision network: encoder (one per layer) → recurrent cell → decoder, a Q-value per width.

Its value of an action is what the decoder gives minus the penalty times the action's price, the
narrowest rest of the path included: what is known beforehand is not learnt, and what is learnt
stays of one size whatever the penalty. (The paper learns all of it; its price is fixed.)
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from models.compute import mac_table, price
from models.config import PENALTY_MIDPOINT, AgentConfig, BackboneConfig, state_features


class Agent(nn.Module):
    """Decides each layer's width from the pooled feature map that enters it."""

    price: Tensor

    def __init__(self, backbone: BackboneConfig, config: AgentConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = nn.ModuleDict(
            {
                str(layer): nn.Linear(
                    state_features(backbone, config, layer, backbone.groups), config.encoding
                )
                for layer in range(1, backbone.n_layers)
            }
        )
        self.cell = nn.GRUCell(config.cell_inputs, config.hidden)
        self.decoder = nn.Linear(config.hidden, backbone.groups)
        prices = price(mac_table(backbone, config), config.form)
        self.register_buffer("price", torch.from_numpy(prices.copy()), persistent=False)

    def start(self, images: int) -> Tensor:
        """The hidden state before the first decision, (N, hidden) of zeros."""
        return self.decoder.weight.new_zeros(images, self.config.hidden)

    def forward(
        self, layer: int, pooled: Tensor, before: Tensor, penalty: Tensor, hidden: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Value the widths of a layer.

        Args:
            layer: 1..L-1.
            pooled: (N, C) mean of each input channel, zero where it was not computed; for layer 1
                after a glance, what `Network.run` saw in it.
            before: (N,) int64, width of the layer before.
            penalty: (N,) price of the full network's compute. Below 0 compute is spent where it
                is expected to help least badly; the agent is then told 0.
            hidden: (N, hidden) state carried from the layers before.
        Returns: Q-values (N, k) and the next hidden state (N, hidden).
        """
        features = torch.relu(self.encoder[str(layer)](pooled))
        if self.config.form == "priced":
            told = penalty.clamp(min=0)
            squashed = told / (told + PENALTY_MIDPOINT)
            features = torch.cat([features, squashed[:, None]], dim=1)
        hidden = self.cell(features, hidden)
        values = self.decoder(hidden) - penalty[:, None] * self.price[layer, before - 1]
        return values, hidden
