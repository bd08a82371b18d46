"""Tests of training/pretrained.py, and of runs that start from a bundle."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

from models import backbones
from models.bundle import read_bundle
from models.network import Network
from models.weights import trainable
from tests.training.support import COLOURS, fit_flags, run_training, tiny_run
from training import pretrained
from training.__main__ import main
from training.errors import ConfigError
from training.evaluation import network_of
from training.pretrained import begin, network_from, sample, settle
from training.run import read_start


@pytest.fixture(scope="module")
def bundle(fitted):
    """A bundle that a tiny run wrote."""
    return read_bundle(fitted / "bundle")


@pytest.fixture
def paths(bundle):
    """Paths along which that bundle was trained."""
    card = bundle.card
    return [[card.backbone.groups] * card.backbone.n_layers, *map(list, card.agent.paths)]


@pytest.fixture
def run(tmp_path, fitted, bundle):
    """A run that starts from it."""
    run = tiny_run(tmp_path, backbone={"pretrained": str(fitted / "bundle")})
    return replace(run, start=bundle)


def logits(network, images, paths):
    with torch.no_grad():
        return torch.cat([network(images, path) for path in paths])


def test_trainable_in_evaluation_mode_is_the_bundle(bundle, paths):
    images = torch.randn(9, 3, 12, 12)
    network = trainable(bundle.card.backbone, bundle.tensors).eval()
    expected = logits(network_of(bundle), images, paths)
    torch.testing.assert_close(logits(network, images, paths), expected, rtol=1e-4, atol=1e-4)


def test_begin_changes_nothing_that_the_bundle_answers(run, bundle, paths):
    images = torch.randn(9, 3, 12, 12)
    expected = logits(network_of(bundle), images, paths)
    found = logits(begin(run).eval(), images, paths)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_settled_statistics_are_those_of_the_images(run, bundle, paths):
    images = torch.cat([batch.images for batch in sample(run)])
    network = trainable(bundle.card.backbone, bundle.tensors)
    settle(network, sample(run), paths[:1])
    tracked = logits(network.eval(), images, paths[:1])
    own = logits(network.train(), images, paths[:1])
    torch.testing.assert_close(own, tracked, rtol=1e-2, atol=1e-2)


def test_begin_settles_along_each_of_the_bundles_paths_once(run, bundle, monkeypatch):
    taken = []
    monkeypatch.setattr(pretrained, "settle", lambda network, batches, paths: taken.extend(paths))
    begin(run)
    assert sorted(taken) == sorted(map(list, bundle.card.agent.paths))


def test_settle_survives_a_channel_that_was_scaled_to_nothing(run, bundle, paths):
    network = trainable(bundle.card.backbone, bundle.tensors)
    network.convs[1].gamma.data[:, 0] = 0
    before = logits(network.eval(), torch.ones(2, 3, 12, 12), paths)
    settle(network, sample(run), paths)
    after = logits(network, torch.ones(2, 3, 12, 12), paths)
    torch.testing.assert_close(after, before, rtol=1e-2, atol=1e-2)
    assert all(torch.isfinite(value).all() for value in network.state_dict().values())


def test_network_for_other_classes_keeps_the_features_alone(bundle):
    backbone = replace(bundle.card.backbone, linears=(5,))
    network = network_from(bundle, backbone, tuple("abcde"))
    kept = trainable(bundle.card.backbone, bundle.tensors)
    assert torch.equal(network.convs[2].weight, kept.convs[2].weight)
    assert network(torch.zeros(1, 3, 12, 12), [4] * backbone.n_layers).shape == (1, 5)
    same_number = network_from(bundle, bundle.card.backbone, ("a", "b", "c"))
    assert not torch.equal(same_number.head[0].weight, kept.head[0].weight)


@pytest.mark.parametrize("labels", [tuple(COLOURS), ("a", "b", "c")])
def test_network_for_another_image_size_keeps_the_weights(bundle, labels):
    backbone = replace(bundle.card.backbone, image_size=20)
    network = network_from(bundle, backbone, labels)
    kept = trainable(bundle.card.backbone, bundle.tensors)
    assert network.backbone == backbone
    assert network.table.full > 2 * kept.table.full
    for (name, value), other in zip(
        network.convs.state_dict().items(), kept.convs.state_dict().values(), strict=True
    ):
        assert torch.equal(value, other), name
    same = torch.equal(network.head[0].weight, kept.head[0].weight)
    assert same == (labels == tuple(bundle.card.labels))
    assert network(torch.zeros(1, 3, 20, 20), [4] * backbone.n_layers).shape == (1, 3)


def test_begin_with_larger_images_answers_as_the_bundles_weights_do_on_them(run, bundle, paths):
    large = replace(run, backbone=replace(run.backbone, image_size=20))
    large = replace(
        large,
        preprocessing=replace(run.preprocessing, size=20, resize=20),
        train=replace(run.train, pixels=run.train.pixels.repeat(2, 1).repeat(2, 2)[:, :20, :20]),
    )
    images = torch.randn(9, 3, 20, 20)
    expected = logits(trainable(large.backbone, bundle.tensors).eval(), images, paths)
    found = logits(begin(large).eval(), images, paths)
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("change", [{"width": 0.5}, {"groups": 2}])
def test_start_of_another_backbone_is_refused(run, change):
    backbone = Network(run.backbone).backbone
    for alike in (backbone, replace(backbone, image_size=16), replace(backbone, linears=(5,))):
        read_start(run.config, alike)
    other = backbones.build(**{"name": "mcifarnet", "classes": 3, "width": 0.125, **change})
    with pytest.raises(ConfigError, match=r"has another backbone: set backbone\.name, \.width"):
        read_start(run.config, other)


def test_fit_from_a_bundle_keeps_its_paths_and_tells_its_past(
    fitted, bundle, pictures, tmp_path, capsys
):
    start = f"backbone.pretrained={fitted / 'bundle'}"
    flags = fit_flags(pictures, tmp_path, start, "supernet.epochs=0", "finetune.epochs=1")
    done = run_training(*flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    card = read_bundle(tmp_path / "bundle").card
    # What the answer before counts is found anew, as the paths have changed.
    assert replace(card.agent, blend=bundle.card.agent.blend) == bundle.card.agent
    assert card.test[-1].accuracy > 0.6
    assert card.training["backbone"]["pretrained"] == "bundle"
    told = {"data": bundle.card.data, "seed": bundle.card.seed, "labels": list(COLOURS)}
    assert card.training["started_from"] == bundle.card.training | told
    text = (tmp_path / "bundle" / "bundle.json").read_text()
    assert str(fitted) not in text


@pytest.mark.parametrize("lost", [("finetune", "agent", "calibration"), ("agent", "calibration")])
def test_fit_from_a_bundle_resumed_equals_an_uninterrupted_one(lost, fitted, pictures, tmp_path):
    start = f"backbone.pretrained={fitted / 'bundle'}"
    flags = fit_flags(pictures, tmp_path, start, "supernet.epochs=0", "finetune.epochs=1")
    assert main(flags) == 0
    expected = read_bundle(tmp_path / "bundle").digest
    shutil.rmtree(tmp_path / "bundle")
    for stage in lost:
        (tmp_path / "work" / "checkpoints" / f"{stage}.pt").unlink()
    assert main([*flags, "--resume"]) == 0
    assert read_bundle(tmp_path / "bundle").digest == expected


@pytest.mark.parametrize(
    ("stage", "setting"),
    [
        ("supernet", "paths.count=2"),
        ("supernet", "paths.images=30"),
        ("supernet", "supernet.learning_rate=0.2"),
        ("supernet", "supernet.random_paths=2"),
        ("finetune", "finetune.learning_rate=0.2"),
    ],
)
def test_fit_setting_of_a_stage_that_is_left_out_is_refused(
    stage, setting, fitted, pictures, tmp_path, capsys
):
    start = f"backbone.pretrained={fitted / 'bundle'}"
    assert main(fit_flags(pictures, tmp_path, start, f"{stage}.epochs=0", setting)) == 1
    assert f"but with {stage}.epochs=0 it is not used: leave it at" in capsys.readouterr().err
    assert not (tmp_path / "work" / "checkpoints").exists()


def test_static_plain_from_a_pretrained_bundle_is_refused(fitted, pictures, tmp_path, capsys):
    flags = fit_flags(pictures, tmp_path, f"backbone.pretrained={fitted / 'bundle'}")[1:]
    assert main(["static", *flags, "--method", "plain"]) == 1
    assert "start from a bundle by --start" in capsys.readouterr().err
    assert not (tmp_path / "work").exists()


def test_fit_from_a_bundle_for_other_classes_searches_new_paths(fitted, pictures, tmp_path):
    for split in ("train", "test"):
        for label in list(COLOURS)[:2]:
            folder = tmp_path / "two" / split / label
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.symlink_to(pictures / split / label)
    start = f"backbone.pretrained={fitted / 'bundle'}"
    flags = fit_flags(tmp_path / "two", tmp_path, start, "supernet.epochs=1", "finetune.epochs=1")
    done = run_training(*flags, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    card = read_bundle(tmp_path / "bundle").card
    assert card.labels == ("cat", "dog")
    assert (tmp_path / "work" / "checkpoints" / "paths.pt").exists()
    assert np.isfinite(card.test[-1].accuracy)


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("supernet.epochs=0", "setting supernet.epochs is 0: give it some, or start from a bundle"),
        ("supernet.flip=false", "setting agent.views is 'both', but supernet.flip is false"),
        ("backbone.groups=1", "setting backbone.groups is 1: one group cannot be pruned"),
        ("backbone.pretrained={}", "bundle.json"),
    ],
)
def test_fit_that_cannot_work_is_refused_at_once(setting, told, pictures, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    flags = fit_flags(pictures, tmp_path, setting.format(tmp_path / "empty"))
    assert main(flags) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert told in line
    assert not (tmp_path / "work").exists()


def test_static_starts_from_the_full_network_of_a_bundle(
    fitted, bundle, pictures, tmp_path, capsys
):
    out = tmp_path / "static"
    settings = fit_flags(pictures, tmp_path, "supernet.epochs=0", "finetune.epochs=1")[1:]
    settings[settings.index("--out") + 1] = str(out)
    more = ["--method", "l1", "--fraction", "0.5", "--start", str(fitted / "bundle")]
    assert main(["static", *settings, *more]) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report["start"] == bundle.digest
    assert report["start_bundle"] == "bundle"
    assert report["accuracy"] > 0.4
