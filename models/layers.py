"""A convolution computed for a width, with its normalisation: trainable, and folded for serving.

Width is an argument, never an attribute: two callers of one module cannot disturb each other.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.config import ConvConfig

EPS = 1e-5
# Share of a batch's statistics in those that are tracked.
MOMENTUM = 0.1


class WidthConv(nn.Module):
    """Convolution and batch normalisation, of which a prefix of the channels is computed.

    No single set of batch statistics fits every input width, so each input width has its own row
    of statistics, scale and shift (US-Nets keep one per sub-network). In training mode the batch's
    statistics are used and tracked; in evaluation mode the tracked ones, as they are folded.
    """

    mean: Tensor
    var: Tensor

    def __init__(self, layer: ConvConfig, groups: int) -> None:
        super().__init__()
        shape = (layer.out_channels, layer.in_channels, layer.kernel, layer.kernel)
        self.weight = nn.Parameter(torch.empty(shape))
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")
        self.gamma = nn.Parameter(torch.ones(groups, layer.out_channels))
        self.beta = nn.Parameter(torch.zeros(groups, layer.out_channels))
        self.register_buffer("mean", torch.zeros(groups, layer.out_channels))
        self.register_buffer("var", torch.ones(groups, layer.out_channels))
        self.stride, self.padding, self.momentum = layer.stride, layer.padding, MOMENTUM

    def forward(self, x: Tensor, in_width: int, channels: int) -> Tensor:
        """Compute the first `channels` outputs of a batch whose input has `in_width` groups.

        Args:
            x: (N, c, H, W), the prefix of the input channels that was computed.
            in_width: 1..k, chooses the row of statistics.
            channels: output channels to compute.
        Returns: (N, channels, H', W'), normalised, before the ReLU.
        """
        row = in_width - 1
        y = F.conv2d(
            x, self.weight[:channels, : x.shape[1]], stride=self.stride, padding=self.padding
        )
        return F.batch_norm(
            y,
            self.mean[row, :channels],
            self.var[row, :channels],
            self.gamma[row, :channels],
            self.beta[row, :channels],
            training=self.training,
            momentum=self.momentum,
            eps=EPS,
        )

    def affine(self) -> tuple[Tensor, Tensor]:
        """Scale and shift, (k, C) each, that equal the normalisation in evaluation mode."""
        scale = self.gamma / torch.sqrt(self.var + EPS)
        return scale, self.beta - self.mean * scale


class FoldedConv(nn.Module):
    """A `WidthConv` in evaluation mode as one biased convolution per input width.

    Args:
        weight: (C, c, K, K). scale, shift: (k, C), a row per input width.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, layer: ConvConfig, weight: Tensor, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.register_buffer("weight", weight[None] * scale[:, :, None, None, None])
        self.register_buffer("bias", shift)
        self.stride, self.padding = layer.stride, layer.padding

    def forward(self, x: Tensor, in_width: int, channels: int) -> Tensor:
        """As `WidthConv.forward`."""
        row = in_width - 1
        return F.conv2d(
            x,
            self.weight[row, :channels, : x.shape[1]],
            self.bias[row, :channels],
            stride=self.stride,
            padding=self.padding,
        )
