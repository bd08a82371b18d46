from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from models.bundle import read_bundle
from models.card import Card
from service.app import create_app
from service.settings import Settings
from tests.service.support import add_bundle, make_card, png, serve


def test_get_models_tells_what_every_budget_costs(
    client: httpx.Client, card: Card, bundles: Path
) -> None:
    (model,) = client.get("/models").json()["models"]
    assert model == {
        "name": "tiny",
        "default": True,
        "digest": read_bundle(bundles / "tiny").digest,
        "labels": ["cat", "dog", "owl"],
        "full_macs": card.table().full,
        "min_fraction": 0.2,
        "best_budget": 1.0,
        "min_cap": card.min_cap,
        "groups": 4,
        "layers": 3,
        "image_size": 8,
        "engine": "fake",
        "curve": [
            {"budget": 0.5, "fraction": 0.51, "accuracy": 0.8},
            {"budget": 1.0, "fraction": 1.0, "accuracy": 0.9},
        ],
        "budget": 0.5,
        "budget_error": 0.0,
        # An engine that is given was not measured.
        "costs": [],
    }


def make_shelf(folder: Path) -> Path:
    """A directory of bundles: two that are served, and beside it one that nobody may reach."""
    for name in ("tiny", "zebra"):
        add_bundle(folder / "bundles", make_card(name))
    add_bundle(folder, make_card("outside"))
    return folder / "bundles"


def operate(shelf: Path) -> AbstractContextManager[httpx.Client]:
    return serve(create_app(Settings(bundles=shelf, threads=1, cache_dir=shelf / ".cache")))


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    return make_shelf(tmp_path)


@pytest.fixture
def operated(shelf: Path) -> Iterator[httpx.Client]:
    with operate(shelf) as client:
        yield client


@pytest.fixture(scope="module")
def refusing(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    """Of a service that is asked for nothing but what it refuses; links lead out of its shelf."""
    outside = tmp_path_factory.mktemp("refusing")
    with operate(shelf := make_shelf(outside)) as client:
        (shelf / "link").symlink_to(outside / "outside")
        (shelf / "linked-card").mkdir()
        (shelf / "linked-card/bundle.json").symlink_to(outside / "outside/bundle.json")
        yield client


def flip_last_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def restate(bundle: Path, **values: Any) -> None:
    card = json.loads((bundle / "bundle.json").read_text())
    (bundle / "bundle.json").write_text(json.dumps(card | values))


def no_tensors(bundle: Path) -> None:
    """The file that the card promises, but no tensors in it."""
    content = b"not tensors"
    (bundle / "model.safetensors").write_bytes(content)
    restate(bundle, files={"model.safetensors": hashlib.sha256(content).hexdigest()})


SPOILERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "changed": (lambda b: flip_last_byte(b / "model.safetensors"), "does not match its SHA-256"),
    "no weights": (lambda b: (b / "model.safetensors").unlink(), "cannot be read"),
    "no card": (lambda b: (b / "bundle.json").unlink(), "cannot be read"),
    "card no JSON": (lambda b: (b / "bundle.json").write_text("{"), "is not JSON"),
    "other format": (lambda b: restate(b, format=99), "format 99 is unknown"),
    "other dimensions": (lambda b: restate(b, labels=["cat"]), "1 labels for 3 classes"),
    "no tensors": (no_tensors, "eader"),
    "other name": (lambda b: restate(b, name="zulu"), "is named 'zulu'"),
    "gone": (shutil.rmtree, "no bundle of this name: choose one of tiny"),
}


@pytest.mark.parametrize("name", SPOILERS)
def test_put_model_bad_bundle_refused_and_the_old_one_serves(
    operated: httpx.Client, shelf: Path, name: str
) -> None:
    before = operated.get("/models").json()
    spoil, words = SPOILERS[name]
    spoil(shelf / "zebra")
    response = operated.put("/models/zebra")
    assert (response.status_code, response.json()["code"]) == (422, "bad_bundle")
    assert response.json()["error"].startswith("zebra stays as it was: ")
    assert words in response.json()["error"]
    assert operated.get("/models").json() == before
    assert operated.post("/classify?model=zebra", content=png()).status_code == 200


@pytest.mark.parametrize(
    ("path", "words"),
    [
        ("..", "plain name"),
        (".", "plain name"),
        ("", "plain name"),
        ("../outside", "plain name"),
        ("zebra/../../outside", "plain name"),
        ("zebra/", "plain name"),
        (".cache", "plain name"),
        ("a\0b", "plain name"),
        ("link", "leads out of"),
        ("linked-card", "leads out of"),
        ("missing", "cannot be read"),
    ],
)
def test_put_model_path_stays_in_the_directory(
    refusing: httpx.Client, tmp_path: Path, path: str, words: str
) -> None:
    add_bundle(tmp_path, make_card("outside"))
    for body in ({"path": path}, {"path": str(tmp_path / "outside")}):
        response = refusing.put("/models/outside", json=body)
        assert (response.status_code, response.json()["code"]) == (422, "bad_bundle")
        assert words in response.json()["error"] or body["path"] != path
    response = refusing.put("/models/outside")
    assert (response.status_code, response.json()["code"]) == (422, "bad_bundle")
    assert "outside" not in refusing.get("/models").text


def test_put_model_new_one_is_found_by_its_card(operated: httpx.Client, shelf: Path) -> None:
    add_bundle(shelf, make_card("extra"), "somewhere")
    shown = operated.put("/models/extra").json()
    assert (shown["name"], shown["default"]) == ("extra", False)
    assert [m["name"] for m in operated.get("/models").json()["models"]] == [
        "extra",
        "tiny",
        "zebra",
    ]
    assert operated.post("/classify?model=extra", content=png()).json()["model"] == "extra"


def test_put_model_two_directories_must_be_told_apart(operated: httpx.Client, shelf: Path) -> None:
    add_bundle(shelf, make_card("zebra"), "zebra-2", seed=1)
    refused = operated.put("/models/zebra")
    assert (refused.status_code, refused.json()["code"]) == (422, "bad_bundle")
    assert "zebra and zebra-2 have this name: say which" in refused.json()["error"]
    shown = operated.put("/models/zebra", json={"path": "zebra-2"}).json()
    assert shown["digest"] == read_bundle(shelf / "zebra-2").digest


@pytest.mark.parametrize(
    ("body", "words"),
    [({"dir": "a"}, "dir is no parameter: the known ones are path"), ({"path": 1}, "path is 1")],
)
def test_put_model_bad_body_refused(refusing: httpx.Client, body: Any, words: str) -> None:
    response = refusing.put("/models/tiny", json=body)
    assert (response.status_code, response.json()["code"]) == (422, "bad_parameter")
    assert words in response.json()["error"]


def test_put_model_default_may_be_replaced(operated: httpx.Client) -> None:
    assert operated.put("/models/tiny").json()["default"] is True


def test_delete_model_until_it_is_put_again(operated: httpx.Client) -> None:
    response = operated.delete("/models/zebra")
    assert (response.status_code, response.content) == (204, b"")
    assert [m["name"] for m in operated.get("/models").json()["models"]] == ["tiny"]
    for gone in (operated.get("/models/zebra"), operated.delete("/models/zebra")):
        assert (gone.status_code, gone.json()["code"]) == (404, "unknown_model")
        assert gone.json()["error"] == "model is 'zebra': choose one of tiny"
    assert operated.put("/models/zebra").status_code == 200
    assert operated.post("/classify?model=zebra", content=png()).status_code == 200


def test_delete_model_default_refused(operated: httpx.Client) -> None:
    for _ in range(2):
        response = operated.delete("/models/tiny")
        assert (response.status_code, response.json()["code"]) == (409, "default_model")
        assert "tiny is the default model" in response.json()["error"]
        operated.delete("/models/zebra")


def test_models_before_bundles_are_loaded_are_503(shelf: Path) -> None:
    client = TestClient(create_app(Settings(bundles=shelf)))  # not entered: nothing is started
    for method in ("GET", "PUT", "DELETE"):
        response = client.request(method, "/models/tiny")
        assert (response.status_code, response.json()["code"]) == (503, "starting")
    client.app.state.service.decoders.shutdown()
