"""Tests of training/run.py: how images are prepared, and where a network starts from."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from models.bundle import read_bundle
from models.pretrained import load_plain
from tests.models.plain_networks import MCifarNet
from tests.training.support import SIZE, tiny_run
from training.errors import ConfigError
from training.pretrained import begin
from training.run import Run, _device
from training.settings import from_dict
from training.splits import lineage

CHANNELS = [8, 8, 16, 16, 16, 24, 24, 24]


def plain_state(classes=3):
    torch.manual_seed(5)
    return MCifarNet(CHANNELS, classes).state_dict()


@pytest.fixture
def opened(pictures, tmp_path):
    """Opens a run on a folder of pictures, with sections of settings."""

    def run(data=None, supernet=None, seed=0, resume=False, **changes):
        data = {"source": str(pictures), "cache": str(tmp_path / "cache"), **(data or {})}
        backbone = {"width": 0.125, "image_size": SIZE, **changes}
        places = {"out": str(tmp_path / "bundle"), "work": str(tmp_path / "work")}
        config = from_dict(
            {
                "data": data,
                "backbone": backbone,
                "supernet": supernet or {},
                "seed": seed,
                **places,
            }
        )
        return Run.open(config, resume=resume)

    return run


@pytest.fixture
def changing(pictures, tmp_path):
    """Settings of a copy of the pictures, under the same name, that a test may change."""
    return {"source": shutil.copytree(pictures, tmp_path / "copy" / "pictures").as_posix()}


def add_image(data, label="cat"):
    """Add one more training image."""
    Image.new("RGB", (SIZE, SIZE), "white").save(f"{data['source']}/train/{label}/000a.png")


@pytest.fixture
def start(fitted, tmp_path):
    """A copy of a bundle, and what changes the data on its card."""
    folder = shutil.copytree(fitted / "bundle", tmp_path / "start")

    def change(**data):
        card = json.loads((folder / "bundle.json").read_text())
        card["data"] = {k: v for k, v in (card["data"] | data).items() if v is not None}
        (folder / "bundle.json").write_text(json.dumps(card))

    return folder, change


def test_open_without_resize_serves_whole_images(opened):
    preprocessing = opened().preprocessing
    assert (preprocessing.size, preprocessing.resize) == (SIZE, SIZE)


def test_open_with_resize_and_crop_serves_the_centre_and_trains_on_more(opened):
    run = opened({"resize": SIZE + 4}, {"crop": 0.5})
    assert (run.preprocessing.size, run.preprocessing.resize) == (SIZE, SIZE + 4)
    for images in (run.train, run.held_out):
        assert images.take(slice(None)).shape[1:] == (SIZE, SIZE, 3)
    assert run.train.take_wide(slice(None)).shape[1:] == (SIZE + 4, SIZE + 4, 3)
    batch = next(run.batches(8).epoch(0))
    assert batch.images.shape == (8, 3, SIZE, SIZE)
    # Shifted images keep their pixels' values, which are whole numbers; resized ones do not.
    std, mean = np.array(run.preprocessing.std), np.array(run.preprocessing.mean)
    values = (batch.images.permute(0, 2, 3, 1).numpy() * std + mean) * 255
    assert np.abs(values - values.round()).mean() > 0.1


def test_open_resize_below_the_input_size_raises(opened):
    with pytest.raises(ConfigError, match=rf"data\.resize is 8, but .* {SIZE} × {SIZE} pixels"):
        opened({"resize": 8})


def test_open_crop_size_without_crops_raises(opened):
    with pytest.raises(ConfigError, match=r"supernet\.crop_size is 8, but without random crops"):
        opened(supernet={"crop_size": 8})


def test_open_shift_with_crops_raises(opened):
    with pytest.raises(
        ConfigError, match=r"supernet\.shift is 0\.25, but with random crops.*0\.125"
    ):
        opened(supernet={"crop": 0.5, "shift": 0.25})


def test_batches_are_as_large_as_served_unless_the_settings_may_say_otherwise(opened):
    run = opened(supernet={"crop": 0.5, "crop_size": SIZE - 4})
    for as_served, side in ((True, SIZE), (False, SIZE - 4)):
        for batch in run.batches(8, as_served=as_served).epoch(0):
            assert batch.images.shape == (8, 3, side, side)
    assert next(run.batches(8).epoch(0)).images.shape == (8, 3, SIZE, SIZE)


def test_open_from_a_bundle_of_another_image_size_is_allowed(opened, fitted):
    run = opened(image_size=SIZE + 4, pretrained=str(fitted / "bundle"))
    assert run.start.card.backbone.image_size == SIZE
    assert run.backbone.image_size == run.preprocessing.size == SIZE + 4


@pytest.mark.parametrize(
    ("data", "seed"), [({}, 1), ({"held_out": 2}, 0)], ids=["seed", "held_out"]
)
def test_open_from_a_bundle_trained_on_what_is_held_out_now_raises(opened, fitted, data, seed):
    with pytest.raises(ConfigError, match=r"was trained on some of them: set seed=\d+ and data\."):
        opened(data, seed=seed, pretrained=str(fitted / "bundle"))


CHANGED = r"data '.*pictures' has changed since bundle .* was trained on it"


def test_open_from_a_bundle_on_the_images_of_then_is_allowed(opened, start, changing):
    folder, change = start
    assert opened(changing, pretrained=str(folder)).start.path == folder
    change(digest=None)  # as of an older version
    opened(changing, pretrained=str(folder))


@pytest.mark.parametrize("older", [False, True])
def test_open_from_a_bundle_on_images_that_changed_since_raises(opened, start, changing, older):
    folder, change = start
    add_image(changing)
    if older:
        change(digest=None)
    with pytest.raises(ConfigError, match=CHANGED):
        opened(changing, pretrained=str(folder))


def test_open_from_a_bundle_on_as_many_other_images_raises(opened, start, changing):
    add_image(changing)
    Path(changing["source"], "train", "cat", "003.png").unlink()
    with pytest.raises(ConfigError, match=CHANGED):
        opened(changing, pretrained=str(start[0]))


def test_open_from_a_bundle_on_its_images_under_another_name_keeps_them_apart(opened, start):
    folder, change = start
    change(source="other")
    opened(pretrained=str(folder))
    with pytest.raises(ConfigError, match="was trained on some of them: set seed=0"):
        opened(seed=1, pretrained=str(folder))
    change(digest="of another set")
    opened(seed=1, pretrained=str(folder))


def test_open_from_a_bundle_whose_parent_was_trained_on_what_is_held_out_now_raises(opened, start):
    folder, _ = start
    card = read_bundle(folder).card
    child = replace(card, training={"started_from": lineage(card)}, data={"source": "other"})
    (folder / "bundle.json").write_text(json.dumps(child.to_json()))
    opened(pretrained=str(folder))
    parent = f"a bundle that {folder} was started from was trained on some of them: set seed=0"
    with pytest.raises(ConfigError, match=parent):
        opened(seed=1, pretrained=str(folder))


def test_open_resumed_on_other_images_raises(opened, changing):
    first = opened(changing)
    assert (opened(changing, resume=True).train.rows == first.train.rows).all()
    add_image(changing)
    with pytest.raises(ConfigError, match=r"setting data\.source is '.*' as before, but what"):
        opened(changing, resume=True)


def test_open_resumed_from_another_bundle_of_the_same_path_raises(opened, start):
    folder, change = start
    opened(pretrained=str(folder))
    opened(pretrained=str(folder), resume=True)
    change(note="written anew")
    with pytest.raises(ConfigError, match=r"setting backbone\.pretrained is '.*' as before, but"):
        opened(pretrained=str(folder), resume=True)


def test_open_resumed_from_another_file_of_the_same_path_raises(opened, tmp_path):
    file = tmp_path / "plain.pt"
    torch.save(plain_state(), file)
    opened(pretrained=str(file))
    opened(pretrained=str(file), resume=True)
    torch.save({name: value + 1 for name, value in plain_state().items()}, file)
    with pytest.raises(ConfigError, match=r"setting backbone\.pretrained is '.*' as before, but"):
        opened(pretrained=str(file), resume=True)


def test_open_reads_the_bundle_once(opened, start):
    folder, _ = start
    run = opened(pretrained=str(folder))
    shutil.rmtree(folder)
    assert begin(run).backbone == run.start.card.backbone


def test_open_leaves_nothing_where_the_bundle_will_be(pictures, tmp_path):
    out = tmp_path / "a" / "b" / "bundle"
    config = from_dict(
        {
            "data": {"source": str(pictures), "cache": str(tmp_path / "cache")},
            "backbone": {"image_size": SIZE},
            "out": str(out),
            "work": str(tmp_path / "work"),
        }
    )
    Run.open(config, resume=False)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("changes", [{"width": 0.25}, {"groups": 2}])
def test_open_from_a_bundle_of_another_backbone_raises(opened, fitted, changes):
    with pytest.raises(ConfigError, match=r"has another backbone: set backbone\.name, \.width"):
        opened(pretrained=str(fitted / "bundle"), **changes)


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


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_open_cuda_without_a_gpu_raises(pictures, tmp_path):
    places = {"out": str(tmp_path / "bundle"), "work": str(tmp_path / "work")}
    config = from_dict({"data": {"source": str(pictures)}, "device": "cuda", **places})
    with pytest.raises(ConfigError, match="device is cuda, but torch finds no CUDA GPU"):
        Run.open(config, resume=False)


@pytest.mark.parametrize(("wanted", "taken"), [("auto", "cuda"), ("cuda", "cuda"), ("cpu", "cpu")])
def test_device_with_a_gpu_is_it_unless_the_cpu_is_wanted(monkeypatch, wanted, taken):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert _device(from_dict({"device": wanted})).type == taken


@pytest.mark.parametrize(("native", "expected"), [(True, torch.bfloat16), (False, torch.float32)])
def test_autocast_auto_takes_bfloat16_where_the_machine_multiplies_it(
    tmp_path, monkeypatch, native, expected
):
    monkeypatch.setattr("training.run.multiplies_bfloat16", lambda device: native)
    run = tiny_run(tmp_path, supernet={"precision": "auto"})
    network = run.network()
    with run.autocast():
        logits = network(torch.randn(2, 3, SIZE, SIZE), [4] * network.backbone.n_layers)
    assert logits.dtype == expected
