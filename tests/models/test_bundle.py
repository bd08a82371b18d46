from __future__ import annotations

import hashlib
import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest

from models.bundle import CARD, CURVE, WEIGHTS, read_bundle, tensor_shapes, write_bundle
from models.card import FORMAT, BundleError
from models.storage import pack, unpack
from tests.models.cards import FORMS, card_of, make_card
from tests.models.support import agent_config, make_backbone, tiny_backbone


def make_tensors(card):
    rng = np.random.default_rng(0)
    shapes = tensor_shapes(card.backbone, card.agent)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


@pytest.fixture
def bundle(tmp_path):
    """The directory of a whole bundle."""
    card = make_card()
    write_bundle(tmp_path / "tiny", card, make_tensors(card), b"a picture")
    return tmp_path / "tiny"


def edit(bundle, change):
    """Let `change` alter the values of the card, and keep what it did."""
    values = json.loads((bundle / CARD).read_text())
    change(values)
    (bundle / CARD).write_text(json.dumps(values))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", ["tiny", "stream", "mcifarnet", "resnet18"])
def test_read_bundle_gives_back_what_was_written(tmp_path, name, form):
    card = card_of(form, make_backbone(name))
    tensors = make_tensors(card)
    tensors["conv.0.weight"] = tensors["conv.0.weight"].astype(np.float16)
    written = write_bundle(tmp_path / "new" / "tiny", card, tensors, b"a picture")
    bundle = read_bundle(tmp_path / "new" / "tiny")
    assert bundle.card == written == replace(card, files=written.files)
    assert bundle.tensors.keys() == tensors.keys()
    for name, value in tensors.items():
        assert bundle.tensors[name].dtype == value.dtype
        assert (bundle.tensors[name] == value).all()


def test_read_bundle_unpacks_what_was_packed(tmp_path):
    card = make_card()
    packed = pack(make_tensors(card), "int8")
    write_bundle(tmp_path / "tiny", card, packed)
    tensors = read_bundle(tmp_path / "tiny").tensors
    assert {name: value.shape for name, value in tensors.items()} == tensor_shapes(
        card.backbone, card.agent
    )
    for name, value in unpack(packed).items():
        assert (tensors[name] == value).all()


def test_read_bundle_refuses_bytes_without_steps(tmp_path):
    packed = pack(make_tensors(make_card()), "int8")
    del packed["conv.1.step"]
    write_bundle(tmp_path / "tiny", make_card(), packed)
    with pytest.raises(
        BundleError, match=r"tiny: model\.safetensors .* conv\.1\.weight is of bytes, without"
    ):
        read_bundle(tmp_path / "tiny")


def test_write_bundle_states_hashes_and_macs_for_readers(bundle):
    values = json.loads((bundle / CARD).read_text())
    assert values["format"] == FORMAT
    assert values["macs"]["full"] == sum(values["macs"]["layers"]) + values["macs"]["head"]
    assert values["files"].keys() == {WEIGHTS, CURVE}
    for name, digest in values["files"].items():
        assert hashlib.sha256((bundle / name).read_bytes()).hexdigest() == digest


def test_write_bundle_without_a_curve_lists_none(tmp_path):
    card = write_bundle(tmp_path / "tiny", make_card(), make_tensors(make_card()))
    assert card.files.keys() == {WEIGHTS}
    assert read_bundle(tmp_path / "tiny").card == card


def test_write_bundle_lets_others_read_it(bundle):
    assert bundle.stat().st_mode & 0o777 == 0o755


def test_write_bundle_into_an_existing_directory_raises_and_leaves_it(tmp_path):
    (tmp_path / "tiny").mkdir()
    (tmp_path / "tiny" / "mine").write_text("precious")
    with pytest.raises(FileExistsError, match="tiny exists: choose another"):
        write_bundle(tmp_path / "tiny", make_card(), make_tensors(make_card()))
    assert [path.name for path in tmp_path.rglob("*")] == ["tiny", "mine"]


def test_write_bundle_on_a_full_disk_leaves_nothing_behind(tmp_path, small_files):
    with pytest.raises(OSError, match="too large"), small_files(2000):
        write_bundle(tmp_path / "tiny", make_card(), make_tensors(make_card()))
    assert list(tmp_path.iterdir()) == []


def test_write_bundle_of_a_card_that_is_not_json_leaves_nothing_behind(tmp_path):
    card = make_card(training={"epochs": {3}})
    with pytest.raises(TypeError):
        write_bundle(tmp_path / "tiny", card, make_tensors(card))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [WEIGHTS, CURVE])
@pytest.mark.parametrize("position", [0, -1])
def test_read_bundle_of_a_tampered_file_raises(bundle, name, position):
    content = bytearray((bundle / name).read_bytes())
    content[position] ^= 1
    (bundle / name).write_bytes(content)
    with pytest.raises(BundleError, match=f"{name} does not match its SHA-256"):
        read_bundle(bundle)


@pytest.mark.parametrize("name", [CARD, WEIGHTS, CURVE])
def test_read_bundle_of_a_missing_file_raises(bundle, name):
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=name):
        read_bundle(bundle)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("../secret", "is not plain"),
        ("/etc/hostname", "is not plain"),
        ("a/b", "is not plain"),
        (".", "is not plain"),
        ("", "Is a directory"),
        ("..", "Is a directory"),
    ],
)
def test_read_bundle_of_a_file_name_elsewhere_raises(bundle, name, words):
    (bundle.parent / "secret").write_bytes(b"secret")
    digest = hashlib.sha256(b"secret").hexdigest()
    edit(bundle, lambda values: values["files"].update({name: digest}))
    with pytest.raises(BundleError, match=words):
        read_bundle(bundle)


@pytest.mark.parametrize("version", [0, 1, 2, FORMAT + 1, str(FORMAT), None])
def test_read_bundle_of_an_unknown_version_raises(bundle, version):
    edit(bundle, lambda values: values.update(format=version))
    words = re.escape(f"bundle {bundle}: format {version!r} is unknown")
    with pytest.raises(BundleError, match=words):
        read_bundle(bundle)


CHANGES = {
    "no labels": lambda v: v.pop("labels"),
    "unknown field": lambda v: v.update(colour="red"),
    "unknown field of the backbone": lambda v: v["backbone"].update(colour="red"),
    "one label more": lambda v: v["labels"].append("cow"),
    "another kernel": lambda v: v["backbone"]["layers"][1].update(kernel=5),
    "more channels": lambda v: v["backbone"]["layers"][4].update(out_channels=15),
    "more groups": lambda v: v["backbone"].update(groups=5),
    "no groups": lambda v: v["backbone"].update(groups=0),
    "layers of text": lambda v: v["backbone"].update(layers=["a"]),
    "unknown agent": lambda v: v["agent"].update(form="free"),
    "wider agent": lambda v: v["agent"].update(hidden=6),
    "no paths": lambda v: v["agent"].pop("paths"),
    "paths of another agent": lambda v: v["agent"].update(paths=[[1] * 6]),
    "no MACs": lambda v: v.pop("macs"),
    "other MACs": lambda v: v["macs"].update(full=1),
    "no calibration": lambda v: v["calibration"].clear(),
    "calibration unsorted": lambda v: v["calibration"].reverse(),
    "calibration of text": lambda v: v["calibration"][0].update(penalty="x"),
    "an infinite penalty": lambda v: v["calibration"][0].update(penalty=math.inf),
    "no number": lambda v: v["calibration"][-1].update(accuracy=math.nan),
    "least above all": lambda v: [p.update(fraction=p["fraction"] + 1) for p in v["calibration"]],
    "name of a number": lambda v: v.update(name=7),
    "no name": lambda v: v.update(name=""),
    "label of a number": lambda v: v["labels"].__setitem__(0, 7),
    "images of another size": lambda v: v["preprocessing"].update(size=9),
    "mean no number": lambda v: v["preprocessing"].update(mean=[math.nan, 0.5, 0.5]),
    "temperature zero": lambda v: v.update(temperature=0),
    "an infinite temperature": lambda v: v.update(temperature=math.inf),
    "temperature of text": lambda v: v.update(temperature="1"),
    "penalty zero": lambda v: v["calibration"][-1].update(penalty=0.0),
    "no files": lambda v: v.update(files={}),
    "files of another kind": lambda v: v.update(files=[1]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_read_bundle_of_a_tampered_card_raises(bundle, change):
    edit(bundle, change)
    with pytest.raises(BundleError, match=re.escape(f"bundle {bundle}: ")):
        read_bundle(bundle)


@pytest.mark.parametrize("field", make_card().to_json())
def test_read_bundle_of_a_card_without_a_field_raises(bundle, field):
    edit(bundle, lambda values: values.pop(field))
    with pytest.raises(BundleError, match=field):
        read_bundle(bundle)


PATH_CHANGES = {
    "short": lambda paths: paths[1].pop(),
    "long": lambda paths: paths[1].append(1),
    "too wide": lambda paths: paths[1].__setitem__(0, 4),
    "not tied": lambda paths: paths.insert(-1, [3, 3, 3, 3, 1, 3]),
    "narrowest twice": lambda paths: paths.insert(1, [1] * 6),
    "whole twice": lambda paths: paths.append([3] * 6),
    "whole not last": lambda paths: paths.pop(),
    "falling MACs": lambda paths: paths.insert(1, paths.pop(2)),
    "text": lambda paths: paths.insert(1, "widest"),
    "none": lambda paths: paths.clear(),
    "one more": lambda paths: paths.insert(1, [1, 1, 1, 1, 1, 2]),
    "one less": lambda paths: paths.pop(2),
}


@pytest.mark.parametrize("change", PATH_CHANGES.values(), ids=PATH_CHANGES)
def test_read_bundle_of_tampered_paths_raises(tmp_path, change):
    card = card_of("paths", tiny_backbone())
    write_bundle(tmp_path / "tiny", card, make_tensors(card))
    edit(tmp_path / "tiny", lambda values: change(values["agent"]["paths"]))
    with pytest.raises(BundleError):
        read_bundle(tmp_path / "tiny")


@pytest.mark.parametrize("looks", [1, 3])
def test_read_bundle_of_fewer_looks_than_it_has_tensors_for_raises(tmp_path, looks):
    card = card_of("paths", tiny_backbone())
    write_bundle(tmp_path / "tiny", card, make_tensors(card))
    edit(tmp_path / "tiny", lambda values: values["agent"].update(looks=looks))
    with pytest.raises(BundleError, match=rf"tensor agent\.looks\.{looks}\.0\.bias .* want none"):
        read_bundle(tmp_path / "tiny")


def test_read_bundle_gives_back_its_views_and_takes_a_card_that_does_not_say_for_the_image(
    tmp_path,
):
    image = card_of("paths", tiny_backbone())
    both = replace(image, agent=replace(image.agent, views="both"))
    for card in (image, both):
        write_bundle(tmp_path / card.agent.views, card, make_tensors(card))
        assert read_bundle(tmp_path / card.agent.views).card.agent == card.agent
    edit(tmp_path / "both", lambda values: values["agent"].pop("views"))
    assert read_bundle(tmp_path / "both").card.agent == image.agent


def test_read_bundle_gives_back_what_it_sees_and_takes_a_card_that_does_not_say_for_maps(tmp_path):
    maps = card_of("paths", tiny_backbone())
    answer = replace(maps, agent=replace(maps.agent, sees="answer"))
    for card in (maps, answer):
        write_bundle(tmp_path / card.agent.sees, card, make_tensors(card))
    assert read_bundle(tmp_path / "answer").card.agent.sees == "answer"
    for sees in ("maps", "answer"):
        edit(tmp_path / sees, lambda values: values["agent"].pop("sees"))
    assert read_bundle(tmp_path / "maps").card.agent == maps.agent
    with pytest.raises(BundleError, match=r"tensor agent\.looks\.0\.0\.weight is "):
        read_bundle(tmp_path / "answer")


@pytest.mark.parametrize("looks", [0, 1, 2, 3, 4, 9])
def test_read_bundle_gives_back_how_often_it_looks(tmp_path, looks):
    backbone = tiny_backbone()
    card = replace(card_of("paths", backbone), agent=agent_config("paths", backbone, looks=looks))
    write_bundle(tmp_path / "tiny", card, make_tensors(card))
    bundle = read_bundle(tmp_path / "tiny")
    assert bundle.card.agent.looks == looks
    decisions = {name.split(".")[2] for name in bundle.tensors if name.startswith("agent.looks.")}
    assert len(decisions) == (min(looks, 4) or 4)


@pytest.mark.parametrize("text", ["", "[]", "3", "{", "\x00", "[" * 100_000])
def test_read_bundle_of_a_card_that_is_no_object_raises(bundle, text):
    (bundle / CARD).write_text(text)
    with pytest.raises(BundleError, match=rf"{CARD} is not (a JSON object|JSON)"):
        read_bundle(bundle)


@pytest.mark.parametrize("name", ["conv.1.scale", "agent.cell.bias_hh", "projection.2.scale"])
def test_read_bundle_of_a_tensor_of_another_shape_raises(tmp_path, name):
    tensors = make_tensors(make_card())
    tensors[name] = tensors[name][..., 1:].copy()
    write_bundle(tmp_path / "tiny", make_card(), tensors)
    with pytest.raises(BundleError, match=f"tensor {name} is "):
        read_bundle(tmp_path / "tiny")


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_read_bundle_of_weights_that_are_no_numbers_raises(tmp_path, value):
    tensors = make_tensors(make_card())
    tensors["head.0.bias"][1] = value
    write_bundle(tmp_path / "tiny", make_card(), tensors)
    with pytest.raises(BundleError, match=r"tensor head\.0\.bias holds values that are no numbers"):
        read_bundle(tmp_path / "tiny")


def test_read_bundle_of_other_bytes_as_weights_raises(bundle):
    content = b"no safetensors"
    (bundle / WEIGHTS).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    edit(bundle, lambda v: v["files"].update({WEIGHTS: digest}))
    with pytest.raises(BundleError, match=f"{WEIGHTS} cannot be read"):
        read_bundle(bundle)


def test_read_bundle_without_a_tensor_raises(tmp_path):
    tensors = make_tensors(make_card())
    del tensors["head.0.bias"]
    write_bundle(tmp_path / "tiny", make_card(), tensors)
    with pytest.raises(BundleError, match=r"tensor head\.0\.bias is missing"):
        read_bundle(tmp_path / "tiny")


def test_read_bundle_with_a_tensor_too_many_raises(tmp_path):
    tensors = {**make_tensors(make_card()), "extra": np.zeros(3, np.float32)}
    write_bundle(tmp_path / "tiny", make_card(), tensors)
    with pytest.raises(BundleError, match=r"tensor extra is .* want none"):
        read_bundle(tmp_path / "tiny")


def test_read_bundle_digest_changes_with_the_weights(tmp_path):
    tensors = make_tensors(make_card())
    write_bundle(tmp_path / "a", make_card(), tensors)
    write_bundle(tmp_path / "b", make_card(), tensors)
    tensors["head.0.bias"] += 1
    write_bundle(tmp_path / "c", make_card(), tensors)
    digests = [read_bundle(tmp_path / name).digest for name in "abc"]
    assert digests[0] == digests[1] != digests[2]
