from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from models.card import Card
from service.batcher import Answer
from service.limits import Limits
from service.metrics import Metrics, ModelMetrics, joined

LIMITS = Limits(0.5, 0.1, None, "load")


def read(metrics: Metrics) -> dict[tuple[str, ...], float]:
    """Every sample by its name and label values."""
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(metrics.text().decode())
        for sample in family.samples
    }


def answer(macs: int, *widths: int) -> Answer:
    zeros, order = np.zeros(3, np.float32), np.arange(3)
    return Answer(zeros, zeros, order, np.array(widths), macs, LIMITS, 0.001, 0.002, 0.0)


def test_series_exist_from_the_start_at_zero(card: Card) -> None:
    metrics = Metrics()
    ModelMetrics(metrics, card, lambda: 0.5, lambda: 0.6, lambda: 0.01)
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
        ("rnp_abandoned_total", "tiny"),
        ("rnp_budget_by_total", "tiny", "deadline"),
        ("rnp_rejected_total", "deadline_passed"),
        ("rnp_rejected_total", "queue_full"),
    ):
        name, *labels = series
        found = [v for key, v in samples.items() if key[0] == name and set(key[1:]) == set(labels)]
        assert found == [0], series
    assert samples["rnp_full_flops", "tiny"] == 2 * card.table().full
    assert samples["rnp_budget", "tiny"] == 0.5


def test_routes_that_classify_start_with_every_error_at_zero() -> None:
    metrics = Metrics()
    metrics.start_routes(["/classify", "/v2/models/{name}/infer", "/healthz"])
    codes = {
        route: {key[1] for key in read(metrics) if key[0] == "rnp_requests_total" and route in key}
        for route in ("/classify", "/v2/models/{name}/infer", "/healthz")
    }
    # A refused image, one that is given up, a mistake of ours, a queue that is full.
    assert codes["/classify"] >= {"200", "400", "415", "499", "500", "429", "503", "504"}
    assert codes["/v2/models/{name}/infer"] == codes["/classify"]
    assert codes["/healthz"] == {"200"}


def test_latencies_of_some_seconds_have_buckets() -> None:
    metrics = Metrics()
    metrics.request_seconds.labels("/classify").observe(6)
    (below,) = (v for k, v in read(metrics).items() if {"/classify", "5.0"} <= set(k))
    (above,) = (v for k, v in read(metrics).items() if {"/classify", "10.0"} <= set(k))
    assert (below, above) == (0, 1)


def test_observe_counts_flops_exactly(card: Card) -> None:
    metrics = Metrics()
    model = ModelMetrics(metrics, card, lambda: 0.5, lambda: 0.6, lambda: 0.01)
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
    ModelMetrics(metrics, card, lambda: 0.5, lambda: 0.6, lambda: 0.01).observe(
        answer(full // 2, 4, 1, 2)
    )
    assert read(metrics)["rnp_compute_fraction_sum", "tiny"] == pytest.approx(0.5, abs=1e-5)


def test_budget_series_are_asked_when_they_are_read(card: Card) -> None:
    metrics, values = Metrics(), [0.3, 0.6, 0.4]
    ModelMetrics(metrics, card, lambda: values[0], lambda: values[1], lambda: values[2])
    assert read(metrics)["rnp_budget", "tiny"] == 0.3
    assert read(metrics)["rnp_budget_at_rest", "tiny"] == 0.6
    assert read(metrics)["rnp_budget_error", "tiny"] == 0.4
    values[0] = 0.1
    assert read(metrics)["rnp_budget", "tiny"] == 0.1


def test_observe_counts_who_set_the_budget(card: Card) -> None:
    metrics = Metrics()
    ModelMetrics(metrics, card, lambda: 0.5, lambda: 0.6, lambda: 0.0).observe(answer(5, 4, 1, 2))
    samples = read(metrics)
    assert samples["rnp_budget_by_total", "load", "tiny"] == 1
    assert samples["rnp_budget_by_total", "request", "tiny"] == 0


def of_model(metrics: Metrics) -> dict[tuple[str, ...], float]:
    return {key: value for key, value in read(metrics).items() if "tiny" in key[1:]}


def test_remove_lets_all_series_of_a_model_vanish(card: Card) -> None:
    metrics = Metrics()
    before = read(metrics)
    model = ModelMetrics(metrics, card, lambda: 0.5, lambda: 0.6, lambda: 0.0)
    assert len(read(metrics)) > len(before)
    model.remove()
    assert read(metrics) == before
    # A request that is still under way when its model is unloaded.
    model.observe(answer(10, 4, 1, 2))
    assert read(metrics) == before


def test_remove_leaves_counters_to_a_successor(card: Card) -> None:
    metrics = Metrics()
    old = ModelMetrics(metrics, card, lambda: 0.5, lambda: 0.6, lambda: 0.0)
    old.observe(answer(10, 4, 1, 2))
    layers = card.backbone.layers
    shorter = dataclasses.replace(card.backbone, layers=layers[:2])
    looks = dataclasses.replace(card.agent, paths=((1, 1), (4, 4)))
    replaced = dataclasses.replace(card, backbone=shorter, agent=looks)
    new = ModelMetrics(metrics, replaced, lambda: 0.5, lambda: 0.6, lambda: 0.0)
    old.remove(successor=new)
    new.observe(answer(10, 3, 3))
    old.observe(answer(10, 1, 1, 1))  # it was still under way
    samples = of_model(metrics)
    assert samples["rnp_images_total", "tiny"] == 3
    assert samples["rnp_full_flops", "tiny"] < 2 * card.table().full
    groups = {key[1]: v for key, v in samples.items() if key[0] == "rnp_layer_groups_total"}
    assert groups == {"0": 8, "1": 5}


def test_joined_is_what_each_process_says_with_its_number(card: Card) -> None:
    texts = {}
    for index, name in ((0, "tiny"), (1, 'a} 1\n# HELP "b" {')):
        metrics = Metrics()
        named = dataclasses.replace(card, name=name)
        ModelMetrics(metrics, named, lambda: 0.5, lambda: 0.6, lambda: 0.0).observe(
            answer(10, 4, 1, 2)
        )
        metrics.start_routes(["/classify"])
        texts[index] = metrics.text()
    expected = {
        (sample.name, frozenset((sample.labels | {"process": str(index)}).items()), sample.value)
        for index, text in texts.items()
        for family in text_string_to_metric_families(text.decode())
        for sample in family.samples
    }
    text = joined(texts).decode()
    families = list(text_string_to_metric_families(text))
    samples = [sample for family in families for sample in family.samples]
    assert {(one.name, frozenset(one.labels.items()), one.value) for one in samples} == expected
    assert len(samples) == len(expected)
    assert text.count("# TYPE rnp_images_total ") == 1
