from __future__ import annotations

import httpx

from models.bundle import Card


def test_get_models_tells_what_every_budget_costs(client: httpx.Client, card: Card) -> None:
    (model,) = client.get("/models").json()["models"]
    assert model == {
        "name": "tiny",
        "default": True,
        "labels": ["cat", "dog", "owl"],
        "full_macs": card.table().full,
        "min_fraction": 0.2,
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
