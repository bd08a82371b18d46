"""Tests of training/static.py."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

import training.static as module
from models.bundle import read_bundle
from models.config import AgentConfig
from models.preprocess import Preprocessing
from tests.training.support import SETTINGS, tiny_run
from training.__main__ import main
from training.checkpoint import Checkpoints
from training.data import load_test
from training.errors import ConfigError
from training.measure import along
from training.pruning import CRITERIA, full_macs, scaled, whole
from training.starts import read
from training.static import METHODS, Wanted, train


def flags(data, out, *more, method="plain", **settings):
    """Flags of a tiny `static`."""
    pairs = {
        f"{section}.{name}": value
        for section in ("backbone", "supernet", "finetune")
        for name, value in SETTINGS[section].items()
    } | {"data.cache": data.parent / "cache", **settings}
    sets = [text for name, value in pairs.items() for text in ("--set", f"{name}={value}")]
    named = ["--data", data, "--out", out, "--method", method, "--threads", 1]
    return [str(flag) for flag in ("static", *named, *sets, *more)]


@pytest.fixture(scope="module")
def plain(pictures, tmp_path_factory):
    """Folder of a plain network."""
    folder = tmp_path_factory.mktemp("static") / "plain"
    assert main(flags(pictures, folder)) == 0
    return folder


@pytest.fixture
def refused(capsys):
    """Runs a command that must fail and gives the sentence it told."""

    def run(arguments):
        capsys.readouterr()
        assert main(arguments) == 1
        (line,) = capsys.readouterr().err.splitlines()
        return line

    return run


def accuracy_of(folder, data):
    """Accuracy on the test images of what a folder holds."""
    trained = read(folder)
    preprocessing = Preprocessing.from_dict(trained.report["preprocessing"])
    images = load_test(
        str(data), preprocessing, names=trained.report["labels"], cache=data.parent / "cache"
    )
    path = np.array([whole(trained.network)])
    return along(trained.network, images, preprocessing, path).accuracy


def test_plain_learns_and_its_weights_are_what_was_measured(plain, pictures):
    report = read(plain).report
    assert report["method"] == "plain"
    assert report["fraction"] == 1
    assert report["epochs"] == SETTINGS["supernet"]["epochs"] + SETTINGS["finetune"]["epochs"]
    assert report["images"] == 60
    assert report["accuracy"] > 0.5
    assert accuracy_of(plain, pictures) == report["accuracy"]


@pytest.mark.parametrize("method", METHODS[1:])
def test_pruned_is_within_its_fraction_and_measured_as_saved(
    method, plain, fitted, pictures, tmp_path, capsys
):
    out = tmp_path / method
    more = ("--start", plain, "--fraction", 0.4)
    if method == "searched":
        more += ("--widths", fitted / "bundle")
    assert main(flags(pictures, out, *more, method=method)) == 0
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert report == json.loads((out / "static.json").read_text())
    network = read(out).network
    assert report["macs"] == full_macs(network.backbone)
    assert 0.3 < report["fraction"] <= 0.4
    assert report["fraction"] == report["macs"] / full_macs(read(plain).network.backbone)
    assert report["channels"] == [conv.weight.shape[0] for conv in network.convs]
    assert report["criterion"] == ("taylor" if method == "torch-pruning" else None)
    assert report["start"] == read(plain).digest
    assert report["accuracy"] == accuracy_of(out, pictures)
    assert report["accuracy"] > 0.4


def test_l1_resumed_equals_uninterrupted(plain, pictures, tmp_path, monkeypatch, capsys):
    more = ("--start", plain, "--fraction", 0.4)
    assert main(flags(pictures, tmp_path / "whole", *more, method="l1")) == 0
    save, left = Checkpoints.save, 2

    def interrupted(self, stage, *args, **kwargs):
        nonlocal left
        left -= stage == "static"
        if left < 0:
            raise KeyboardInterrupt
        save(self, stage, *args, **kwargs)

    torn = flags(pictures, tmp_path / "torn", *more, method="l1")
    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", interrupted)
        assert main(torn) == 130
    assert not (tmp_path / "torn" / "static.json").exists()
    assert main([*torn, "--resume"]) == 0
    found, expected = (read(tmp_path / name) for name in ("torn", "whole"))
    assert found.digest == expected.digest
    assert found.report == expected.report


def test_resume_with_another_fraction_names_the_flag(plain, pictures, tmp_path, refused):
    more = ("--start", plain, "--fraction", 0.4)
    assert main(flags(pictures, tmp_path / "out", *more, method="l1")) == 0
    (tmp_path / "out" / "static.json").unlink()
    more = ("--start", plain, "--fraction", 0.5, "--resume")
    assert "--fraction differs" in refused(flags(pictures, tmp_path / "out", *more, method="l1"))


def test_train_learns_the_teachers_opinion_instead_of_the_labels(tmp_path):
    run = tiny_run(tmp_path)
    run = replace(run, backbone=replace(run.backbone, groups=1))
    teacher = run.network().eval().requires_grad_(False)
    teacher.head[0].weight.zero_()
    teacher.head[0].bias.copy_(torch.tensor([0.0, 0.0, 9.0]))
    narrow = replace(run, backbone=scaled(run.backbone, 0.5)).network()
    train(run, narrow, teacher)
    outcome = along(narrow, run.held_out, run.preprocessing, np.array([whole(narrow)]))
    assert outcome.accuracy == pytest.approx((run.held_out.labels == 2).mean())
    assert all(parameter.grad is None for parameter in teacher.parameters())


PRETRAINED = ("--set", "backbone.pretrained=plain.pt")


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (("--fraction", "0.5"), "--method plain takes neither --fraction nor --start"),
        (("--method", "l1", "--fraction", "0.5"), "--method l1 needs --start"),
        (("--method", "l1", "--start", "x"), "needs a --fraction between 0 and 1, not None"),
        (("--method", "l1", "--start", "x", "--fraction", "1.5"), "between 0 and 1, not 1.5"),
        (("--method", "narrow", "--start", "x", "--fraction", "0.5"), "x holds no finished static"),
        (("--criterion", "lamp"), "--criterion lamp is for --method torch-pruning, not plain"),
        (("--widths", "x"), "--widths x is for --method searched, not plain: leave it out"),
        (("--method", "searched", "--start", "x", "--fraction", "0.5"), "searched needs --widths"),
        (("--backbone", "resnet20"), "backbone resnet20 has residual layers"),
        (("--backbone", "lenet"), "backbone 'lenet' is unknown"),
        (
            ("--method", "l1", "--start", "x", "--fraction", "0.5", *PRETRAINED),
            "setting backbone.pretrained is 'plain.pt', but with --method l1 it is not used",
        ),
        (("--set", "supernet.cutmix=0.5"), "supernet.cutmix and supernet.crop_size are for ours"),
    ],
)
def test_wrong_flags_are_told_and_leave_nothing(more, told, pictures, tmp_path, refused):
    settings = flags(pictures, tmp_path / "out", *more)
    assert told in refused(settings)
    assert not (tmp_path / "out").exists()


def test_missing_out_is_told(pictures, tmp_path, refused):
    assert "--out is missing" in refused(["static", "--data", str(pictures), "--method", "plain"])


def test_finished_network_is_not_touched(plain, pictures, refused):
    before = (plain / "static.json").read_bytes()
    assert "holds a finished network: choose another --out" in refused(flags(pictures, plain))
    assert (plain / "static.json").read_bytes() == before


def test_start_of_another_backbone_is_refused(plain, pictures, tmp_path, refused):
    more = ("--start", plain, "--fraction", 0.5, "--set", "backbone.width=0.25")
    told = refused(flags(pictures, tmp_path / "out", *more, method="l1"))
    assert "has another backbone, or other classes" in told


def test_start_that_is_pruned_itself_is_refused(plain, pictures, tmp_path, refused):
    folder = tmp_path / "pruned"
    folder.mkdir()
    report = json.loads((plain / "static.json").read_text()) | {"method": "narrow"}
    (folder / "static.json").write_text(json.dumps(report))
    (folder / "model.safetensors").write_bytes((plain / "model.safetensors").read_bytes())
    more = ("--start", folder, "--fraction", 0.5)
    told = refused(flags(pictures, tmp_path / "out", *more, method="l1"))
    assert "is of --method narrow, not plain" in told


def test_searched_layers_are_as_wide_as_a_path_of_the_bundle(fitted, plain, pictures, tmp_path):
    more = ("--start", plain, "--widths", fitted / "bundle", "--fraction", 0.9)
    assert main(flags(pictures, tmp_path / "out", *more, method="searched")) == 0
    report, card = read(tmp_path / "out").report, read_bundle(fitted / "bundle").card
    widths = [
        [
            layer.out_channels * w // card.backbone.groups
            for layer, w in zip(layers, path, strict=True)
        ]
        for layers, path in ((card.backbone.layers, path) for path in card.agent.paths[:-1])
    ]
    assert report["channels"] in widths
    assert report["fraction"] <= 0.9


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"labels": ("x", "y", "z")}, "has another backbone, or other classes"),
        ({"agent": AgentConfig()}, "has no paths: its agent decides layer by layer"),
        ({"seed": 1}, "was trained on some of them"),
    ],
)
def test_widths_of_another_bundle_are_refused(
    fitted, plain, pictures, tmp_path, monkeypatch, refused, changes, told
):
    bundle = read_bundle(fitted / "bundle")
    changed = replace(bundle, card=replace(bundle.card, **changes))
    monkeypatch.setattr(module, "read_bundle", lambda folder: changed)
    more = ("--start", plain, "--widths", "x", "--fraction", 0.9)
    assert told in refused(flags(pictures, tmp_path / "out", *more, method="searched"))


def test_start_that_was_trained_on_other_images_is_refused(plain, pictures, tmp_path, refused):
    folder = tmp_path / "start"
    shutil.copytree(plain, folder)
    report = json.loads((plain / "static.json").read_text()) | {"digest": "of another set"}
    (folder / "static.json").write_text(json.dumps(report))
    more = ("--start", folder, "--fraction", 0.5)
    told = refused(flags(pictures, tmp_path / "out", *more, method="l1"))
    assert "was trained on other images than" in told


def test_start_of_a_bundle_trained_on_what_is_held_out_now_is_refused(
    fitted, pictures, tmp_path, refused
):
    more = ("--start", fitted / "bundle", "--fraction", 0.5, "--seed", 1)
    told = refused(flags(pictures, tmp_path / "out", *more, method="l1"))
    assert f"bundle {fitted / 'bundle'} was trained on some of them: set seed=0" in told


def test_plain_of_images_that_changed_meanwhile_is_not_measured_on_them(
    photos, tmp_path, monkeypatch, refused
):
    data = photos(train={"cat": 10, "dog": 10})

    def changing(run, network, teacher):
        shutil.copy(data / "dog" / "000.png", data / "cat" / "000a.png")

    monkeypatch.setattr(module, "train", changing)
    assert "has no test split, and has changed" in refused(flags(data, tmp_path / "out"))
    assert not (tmp_path / "out" / "static.json").exists()


def test_read_weights_of_another_network_raises(plain, tmp_path):
    report = json.loads((plain / "static.json").read_text())
    report["backbone"]["linears"] = [7]
    (tmp_path / "static.json").write_text(json.dumps(report))
    (tmp_path / "model.safetensors").write_bytes((plain / "model.safetensors").read_bytes())
    with pytest.raises(ConfigError, match="holds no finished static network"):
        read(tmp_path)


def test_flags_offer_what_there_is(capsys):
    with pytest.raises(SystemExit):
        main(["static", "--help"])
    told = capsys.readouterr().out
    assert all(choice in told for choice in (*METHODS, *CRITERIA))


def test_wanted_plain_needs_nothing():
    Wanted("plain").check()
