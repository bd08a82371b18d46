"""Tests of training/run.py: where a network starts from."""

import pytest
import torch

from models.pretrained import load_plain
from tests.models.plain_networks import MCifarNet
from tests.training.support import tiny_run
from training.errors import ConfigError

CHANNELS = [8, 8, 16, 16, 16, 24, 24, 24]


def plain_state(classes=3):
    torch.manual_seed(5)
    return MCifarNet(CHANNELS, classes).state_dict()


def test_network_of_pretrained_weights_starts_from_them(tmp_path):
    torch.save(plain_state(), tmp_path / "plain.pt")
    expected = tiny_run(tmp_path / "a").network()
    load_plain(expected, plain_state())
    run = tiny_run(tmp_path / "b", backbone={"pretrained": str(tmp_path / "plain.pt")})
    found = run.network().state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.state_dict().items())


def test_network_of_one_seed_is_the_same_each_time(tmp_path):
    first, again = (tiny_run(tmp_path / name).network().state_dict() for name in "ab")
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_network_of_pretrained_weights_for_other_classes_raises(tmp_path):
    torch.save(plain_state(classes=10), tmp_path / "plain.pt")
    run = tiny_run(tmp_path / "work", backbone={"pretrained": str(tmp_path / "plain.pt")})
    with pytest.raises(ConfigError, match=r"backbone.pretrained: .*plain.pt: tensor linear.weight"):
        run.network()


def test_network_of_missing_pretrained_weights_raises(tmp_path):
    run = tiny_run(tmp_path / "work", backbone={"pretrained": str(tmp_path / "plain.pt")})
    with pytest.raises(ConfigError, match=r"plain.pt: .*No such file"):
        run.network()


def test_network_of_junk_for_pretrained_weights_raises(tmp_path):
    (tmp_path / "plain.safetensors").write_bytes(b"junk")
    run = tiny_run(tmp_path / "work", backbone={"pretrained": str(tmp_path / "plain.safetensors")})
    with pytest.raises(ConfigError, match=r"plain.safetensors: neither safetensors nor"):
        run.network()
