from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from models.config import ConvConfig
from models.layers import EPS, FoldedConv, WidthConv

GROUPS = 4
LAYER = ConvConfig("conv", "norm", 8, 12, stride=2)
WIDTHS = [(i, o) for i in range(1, GROUPS + 1) for o in range(1, GROUPS + 1)]


@pytest.fixture
def conv():
    """A convolution in evaluation mode whose rows of statistics differ."""
    torch.manual_seed(0)
    conv = WidthConv(LAYER, GROUPS).eval()
    with torch.no_grad():
        conv.gamma.uniform_(0.5, 1.5)
        conv.beta.normal_()
        conv.mean.normal_()
        conv.var.uniform_(0.5, 2)
    return conv


def prefix(in_width, images=5):
    """Images of which `in_width` groups of channels were computed."""
    generator = torch.Generator().manual_seed(in_width)
    return torch.randn(images, LAYER.in_channels * in_width // GROUPS, 7, 7, generator=generator)


def masked(conv, x, in_width):
    """All channels of a plain convolution and normalisation, missing inputs as zeros."""
    whole = F.pad(x, (0, 0, 0, 0, 0, LAYER.in_channels - x.shape[1]))
    y = F.conv2d(whole, conv.weight, stride=LAYER.stride, padding=LAYER.padding)
    row = in_width - 1
    norm = nn.BatchNorm2d(LAYER.out_channels, eps=EPS)
    norm.load_state_dict(
        {
            "weight": conv.gamma[row],
            "bias": conv.beta[row],
            "running_mean": conv.mean[row],
            "running_var": conv.var[row],
            "num_batches_tracked": torch.tensor(0),
        }
    )
    return norm.train(conv.training)(y)


@pytest.mark.parametrize(("i", "o"), WIDTHS)
def test_width_conv_sliced_equals_masked(conv, i, o):
    x, channels = prefix(i), LAYER.out_channels * o // GROUPS
    torch.testing.assert_close(conv(x, i, channels), masked(conv, x, i)[:, :channels])


@pytest.mark.parametrize(("i", "o"), WIDTHS)
def test_width_conv_sliced_in_training_equals_masked(conv, i, o):
    conv.train()
    x, channels = prefix(i), LAYER.out_channels * o // GROUPS
    torch.testing.assert_close(conv(x, i, channels), masked(conv, x, i)[:, :channels])


@pytest.mark.parametrize("i", range(1, GROUPS + 1))
def test_width_conv_in_training_updates_only_the_prefix_of_its_own_row(conv, i):
    before = {"mean": conv.mean.clone(), "var": conv.var.clone()}
    conv.train()(prefix(i), i, 6)
    for name, old in before.items():
        changed = getattr(conv, name) != old
        assert changed[i - 1, :6].all()
        assert changed.sum() == 6


def test_width_conv_in_training_tracks_the_batchs_statistics(conv):
    x, old_mean, old_var = prefix(2), conv.mean.clone(), conv.var.clone()
    conv.train()(x, 2, 12)
    y = F.conv2d(x, conv.weight[:, :4], stride=2, padding=1)
    mean, var = y.mean((0, 2, 3)), y.var((0, 2, 3))
    torch.testing.assert_close(conv.mean[1], 0.9 * old_mean[1] + 0.1 * mean)
    torch.testing.assert_close(conv.var[1], 0.9 * old_var[1] + 0.1 * var)


def test_width_conv_in_evaluation_tracks_nothing(conv):
    before = conv.mean.clone(), conv.var.clone()
    conv(prefix(3), 3, 12)
    assert torch.equal(conv.mean, before[0])
    assert torch.equal(conv.var, before[1])


def test_width_conv_gradient_reaches_only_what_was_computed(conv):
    conv(prefix(2), 2, 6).square().sum().backward()
    for rows in (conv.gamma.grad, conv.beta.grad):
        assert rows[1, :6].all()
        assert rows.count_nonzero() == 6
    assert conv.weight.grad[:6, :4].all()
    assert conv.weight.grad.count_nonzero() == 6 * 4 * 9


def test_affine_equals_normalisation_in_evaluation(conv):
    scale, shift = conv.affine()
    y = F.conv2d(prefix(3), conv.weight[:, :6], stride=2, padding=1)
    expected = conv(prefix(3), 3, 12)
    torch.testing.assert_close(y * scale[2, :, None, None] + shift[2, :, None, None], expected)


@pytest.mark.parametrize(("i", "o"), WIDTHS)
def test_folded_conv_equals_width_conv_in_evaluation(conv, i, o):
    folded = FoldedConv(LAYER, conv.weight, *conv.affine())
    x, channels = prefix(i), LAYER.out_channels * o // GROUPS
    torch.testing.assert_close(folded(x, i, channels), conv(x, i, channels), rtol=1e-4, atol=1e-5)
