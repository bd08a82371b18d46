from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from models.bundle import Card
from service.batcher import Answer
from service.budget import Budget
from service.metrics import Metrics, ModelMetrics


def read(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Every sample by its name and label values."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
    }


def answer(macs: int, *widths: int) -> Answer:
    return Answer(np.zeros(3, np.float32), np.array(widths), macs, 0.001, 0.002)


def test_series_exist_from_the_start_at_zero(card: Card) -> None:
    metrics = Metrics()
    ModelMetrics(metrics, card, Budget(0.5))
    metrics.start_routes(["/classify"])
    samples = read(metrics)
    for series in (
        ("rnp_requests_total", "/classify", "200"),
        ("rnp_request_seconds_count", "/classify"),
        ("rnp_stage_seconds_count", "decode"),
        ("rnp_stage_seconds_count", "queue"),
        ("rnp_stage_seconds_count", "inference"),
        ("rnp_images_total", "tiny"),
        ("rnp_request_flops_count", "tiny"),
        ("rnp_flops_total", "tiny"),
        ("rnp_compute_fraction_count", "tiny"),
        ("rnp_layer_groups_total", "tiny", "2"),
        ("rnp_batch_size_count",),
        ("rnp_queue_depth",),
        ("rnp_rejected_total", "queue_full"),
    ):
        name, *labels = series
        found = [v for key, v in samples.items() if key[0] == name and set(key[1:]) == set(labels)]
        assert found == [0], series
    assert samples["rnp_full_flops", "tiny"] == 2 * card.table().full
    assert samples["rnp_budget", "tiny"] == 0.5


def test_observe_counts_flops_exactly(card: Card) -> None:
    metrics = Metrics()
    model = ModelMetrics(metrics, card, Budget(0.5))
    for macs in (10**12 + 1, 3):
        model.observe(answer(macs, 4, 1, 2))
    samples = read(metrics)
    assert samples["rnp_flops_total", "tiny"] == 2 * (10**12 + 4)
    assert samples["rnp_images_total", "tiny"] == 2
    groups = [v for key, v in samples.items() if key[0] == "rnp_layer_groups_total"]
    assert sorted(groups) == [2, 4, 8]


def test_observe_fraction_is_a_share_of_the_full_network(card: Card) -> None:
    metrics = Metrics()
    full = card.table().full
    ModelMetrics(metrics, card, Budget(0.5)).observe(answer(full // 2, 4, 1, 2))
    assert read(metrics)["rnp_compute_fraction_sum", "tiny"] == pytest.approx(0.5, abs=1e-5)


def test_budget_series_follows_the_budget_and_the_least(card: Card) -> None:
    metrics, budget = Metrics(), Budget(0.5)
    ModelMetrics(metrics, card, budget)
    budget.set(0.3)
    assert read(metrics)["rnp_budget", "tiny"] == 0.3
    budget.set(0.01)
    assert read(metrics)["rnp_budget", "tiny"] == card.min_fraction


def of_model(metrics: Metrics) -> dict[tuple[str, ...], float]:
    return {key: value for key, value in read(metrics).items() if "tiny" in key[1:]}


def test_remove_lets_all_series_of_a_model_vanish(card: Card) -> None:
    metrics = Metrics()
    before = read(metrics)
    model = ModelMetrics(metrics, card, Budget(0.5))
    assert len(read(metrics)) > len(before)
    model.remove()
    assert read(metrics) == before
    # A request that is still under way when its model is unloaded.
    model.observe(answer(10, 4, 1, 2))
    assert read(metrics) == before


def test_remove_leaves_counters_to_a_successor(card: Card) -> None:
    metrics = Metrics()
    old = ModelMetrics(metrics, card, Budget(0.5))
    old.observe(answer(10, 4, 1, 2))
    layers = card.backbone.layers
    shorter = dataclasses.replace(card.backbone, layers=layers[:2])
    looks = dataclasses.replace(card.agent, paths=((1, 1), (4, 4)))
    new = ModelMetrics(
        metrics, dataclasses.replace(card, backbone=shorter, agent=looks), Budget(0.5)
    )
    old.remove(successor=new)
    new.observe(answer(10, 3, 3))
    samples = of_model(metrics)
    assert samples["rnp_images_total", "tiny"] == 2
    assert samples["rnp_full_flops", "tiny"] < 2 * card.table().full
    groups = {key[1]: v for key, v in samples.items() if key[0] == "rnp_layer_groups_total"}
    assert groups == {"0": 7, "1": 4}
