"""Every query of the dashboard and every alert, by a real Prometheus that scrapes the service."""

import io
import json
import math
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import httpx
import numpy as np
import pytest
import yaml
from PIL import Image

from benchmarks.load.server import Server, free_port, running, service
from service.errors import all_errors
from tests.benchmarks.support import write_narrow_bundle

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "deploy/grafana/dashboards/compute.json").read_text())
PROMETHEUS = ROOT / "deploy/prometheus"
(GROUP,) = yaml.safe_load((PROMETHEUS / "alerts.yml").read_text())["groups"]
ALERTS = {rule["alert"]: rule for rule in GROUP["rules"]}
# Series, over 60 minutes, of a service that is fine.
FINE = {
    'up{job="rnp", instance="a"}': "1x120",
    'rnp_requests_total{instance="a", route="/classify", code="200"}': "0+100x120",
    'rnp_requests_total{instance="a", route="/classify", code="500"}': "0x120",
    'rnp_requests_total{instance="a", route="/classify", code="504"}': "0x120",
    'rnp_rejected_total{instance="a", reason="queue_full"}': "0x120",
    'rnp_rejected_total{instance="a", reason="deadline_passed"}': "0x120",
    'rnp_rejected_total{instance="a", reason="deadline_unreachable"}': "0x120",
    'rnp_rejected_total{instance="a", reason="not_an_image"}': "0+50x120",
    'rnp_images_total{instance="a", model="m"}': "0+200x120",
    'rnp_budget{instance="a", model="m"}': "0.4x120",
    'rnp_budget_at_rest{instance="a", model="m"}': "0.4x120",
    'rnp_budget_error{instance="a", model="m"}': "0.01x120",
}
# What is wrong where each alert fires, and what is almost wrong.
_DOWN, _, _FAILED, _LATE, _FULL, _PASSED, _UNREACHABLE, _, _, _BUDGET, _, _ERROR = FINE
WRONG = {
    "Down": [{_DOWN: "1x10 0x110"}],
    "InternalErrors": [{_FAILED: "0+1x120"}],
    "RequestsRefused": [{_FULL: "0+3x120"}],
    # Whole requests, and images of forms, half of them for either reason.
    "DeadlinesMissed": [{_LATE: "0+3x120"}, dict.fromkeys((_PASSED, _UNREACHABLE), "0+1.5x120")],
    "BudgetHeldDown": [{_BUDGET: "0.2x120"}],
    "BudgetExceeded": [{_ERROR: "0.1x120"}],
}
BORDERLINE = {
    "Down": {_DOWN: "1x10 0x1 1x109"},
    "InternalErrors": {_FAILED: "0x100 1x20"},
    "RequestsRefused": {_FULL: "0+0.5x120"},
    "DeadlinesMissed": {_LATE: "0+0.5x120", _PASSED: "0+1.5x120"},
    "BudgetHeldDown": {_BUDGET: " ".join(["0.1x8 0.4"] * 12)},  # bursts
    "BudgetExceeded": {_ERROR: "-0.3x120"},
}
# What Grafana puts in for its variables.
VARIABLES = {"$model": ".*", "$__rate_interval": "5m", "$__range": "5m"}
ERRORS = 'rnp_requests_total{route="/classify", code="400"}'
PATIENCE_S = 30
# Without the certificates of TLS, to read which takes longer than to ask.
get, post = (partial(how, verify=False) for how in (httpx.get, httpx.post))


def queries() -> Iterator[tuple[str, str]]:
    """Panel and text of each query of the dashboard, its variables filled in."""
    for panel in DASHBOARD["panels"]:
        for target in panel.get("targets", []):
            query = target["expr"]
            for name, value in VARIABLES.items():
                query = query.replace(name, value)
            yield f"{panel['title']} {target['refId']}", query


QUERIES = dict(queries())


def program(name: str) -> str:
    """Prometheus, or what lies beside it."""
    binary = shutil.which("prometheus")
    if binary is None:
        pytest.fail(
            "there is no prometheus on the PATH: `make test` fetches one on Debian and its kin; "
            "elsewhere install it (https://prometheus.io/download)"
        )
    return str(Path(binary).resolve().with_name(name))


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        if condition():
            return
        time.sleep(0.1)
    pytest.fail(f"{what} did not happen")


def ask(prometheus_url: str, query: str) -> list[float]:
    """The finite values of an instant query's answer."""
    response = get(f"{prometheus_url}/api/v1/query", params={"query": query}).json()
    assert response["status"] == "success", response
    values = [float(series["value"][1]) for series in response["data"]["result"]]
    return [value for value in values if math.isfinite(value)]


def classify_images(service_url: str, n_images: int) -> list[float]:
    """Post images of noise, each by the agent and in full, and one text; the shares they cost."""
    noise, shares = np.random.default_rng(0), []
    for _ in range(n_images):
        content = io.BytesIO()
        Image.fromarray(noise.integers(0, 256, (32, 32, 3), np.uint8)).save(content, "PNG")
        for budget in ("budget=0.5", "budget=1"):
            response = post(f"{service_url}/classify?{budget}", content=content.getvalue())
            shares.append(response.raise_for_status().json()["compute"]["fraction"])
    assert post(f"{service_url}/classify", content=b"no image").status_code == 400
    return shares


@pytest.fixture(scope="module")
def service_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    scratch = tmp_path_factory.mktemp("service")
    bundle = write_narrow_bundle(scratch / "bundles" / "narrow")
    with service(bundle, cache_dir=scratch / "cache", threads=1) as server:
        yield f"http://{server.host}:{server.port}"


@pytest.fixture(scope="module")
def prometheus_url(service_url: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    binary = program("prometheus")
    scratch = tmp_path_factory.mktemp("prometheus")
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "500ms", "evaluation_interval": "500ms"}
    config["scrape_configs"][0]["static_configs"][0]["targets"] = [service_url.split("//")[1]]
    (scratch / "prometheus.yml").write_text(yaml.safe_dump(config))
    shutil.copy(PROMETHEUS / "alerts.yml", scratch)

    port = free_port()
    command = [
        binary,
        f"--config.file={scratch / 'prometheus.yml'}",
        f"--storage.tsdb.path={scratch / 'data'}",
        f"--web.listen-address={Server.host}:{port}",
    ]
    with running(command, port, {}) as server:
        server.wait_ready("/-/ready")
        url = f"http://{server.host}:{port}"
        wait_until(lambda: ask(url, "up") == [1], "Prometheus' first scrape")
        yield url


@pytest.fixture(scope="module")
def shares(service_url: str, prometheus_url: str) -> list[float]:
    """The shares of full compute of images that Prometheus has seen the service classify."""
    wait_until(lambda: ask(prometheus_url, ERRORS) == [0], "a scrape without errors")
    shares = classify_images(service_url, 10)
    wait_until(lambda: ask(prometheus_url, ERRORS) == [1], "the scrape of the images")
    return shares


def test_dashboard_panel_titles_are_unique() -> None:
    titles = [panel["title"] for panel in DASHBOARD["panels"]]
    assert len(titles) == len(set(titles))


@pytest.mark.usefixtures("shares")
@pytest.mark.parametrize("query", QUERIES.values(), ids=QUERIES)
def test_dashboard_query_returns_data(prometheus_url: str, query: str) -> None:
    assert ask(prometheus_url, query), f"no data from {query}"


def test_dashboard_compute_saved_agrees_with_responses(
    prometheus_url: str, shares: list[float]
) -> None:
    # Prometheus extrapolates each counter to the edges of the range.
    assert ask(prometheus_url, QUERIES["Compute saved A"]) == [
        pytest.approx(1 - np.mean(shares), abs=0.02)
    ]


def test_dashboard_first_error_is_an_increase(prometheus_url: str, shares: list[float]) -> None:
    (failed,) = ask(prometheus_url, QUERIES["Failed requests A"])
    assert failed == pytest.approx(1 / (len(shares) + 1), rel=0.05)


@pytest.mark.parametrize(
    ("query", "value"),
    [("Compute saved A", 0.5), ("Share of full compute A", 0.5), ("FLOPs per second B", 25)],
)
def test_dashboard_counts_a_model_that_was_unloaded(
    tmp_path: Path, query: str, value: float
) -> None:
    """Its series ended two minutes ago; those of one that stays go on, without images."""
    series = {
        'rnp_images_total{model="gone"}': "0+60x2 stale",
        'rnp_flops_total{model="gone"}': "0+3000x2 stale",
        'rnp_full_flops{model="gone"}': "100x2 stale",
        'rnp_images_total{model="stays"}': "0x4",
        'rnp_flops_total{model="stays"}': "0x4",
        'rnp_full_flops{model="stays"}': "7x4",
    }
    check_queries(tmp_path, series, {QUERIES[query]: value}, "4m", interval="1m")


def test_dashboard_counts_requests_of_the_open_inference_protocol(tmp_path: Path) -> None:
    """Half of them fail, and all take between 0 and 1 s."""
    route = 'route="/v2/models/{name}/infer"'
    series = {
        f'rnp_requests_total{{{route}, code="200"}}': "0+60x4",
        f'rnp_requests_total{{{route}, code="400"}}': "0+60x4",
        f'rnp_request_seconds_bucket{{{route}, le="1"}}': "0+120x4",
        f'rnp_request_seconds_bucket{{{route}, le="+Inf"}}': "0+120x4",
    }
    values = {"Failed requests A": 0.5, "Latency, p95 A": 0.95}
    values |= {"Whole request A": 0.5, "Whole request B": 0.95, "Whole request C": 0.99}
    expected = {QUERIES[name]: value for name, value in values.items()}
    check_queries(tmp_path, series, expected, "4m", interval="1m")


def check_queries(
    scratch: Path,
    series: dict[str, str],
    values: dict[str, float | None],
    at: str,
    *,
    interval: str = "30s",
) -> None:
    """Check what queries give, by Prometheus' own tool.

    Args:
        series: by name, their values in its notation, one in each interval.
        values: by query, None if it gives nothing.
        at: how long after the series' beginning they are asked.
    """
    expected = [
        {
            "expr": query,
            "eval_time": at,
            "exp_samples": [] if value is None else [{"labels": "{}", "value": value}],
        }
        for query, value in values.items()
    ]
    test = {
        "interval": interval,
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": expected,
    }
    whole = {"rule_files": [str(PROMETHEUS / "alerts.yml")], "tests": [test]}
    (scratch / "test.yml").write_text(yaml.safe_dump(whole))
    command = [program("promtool"), "test", "rules", str(scratch / "test.yml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_dashboard_model_variable_lists_models(service_url: str, prometheus_url: str) -> None:
    (variable,) = DASHBOARD["templating"]["list"]
    assert variable["definition"] == "label_values(rnp_images_total, model)"
    values = get(
        f"{prometheus_url}/api/v1/label/model/values", params={"match[]": "rnp_images_total"}
    ).json()["data"]
    models = get(f"{service_url}/models").json()["models"]
    assert values == sorted(model["name"] for model in models)


def firing(alert: str) -> str:
    """The series of an alert while it fires, as a query."""
    return f'ALERTS{{alertname="{alert}", alertstate="firing"}}'


@pytest.mark.parametrize(
    ("alert", "wrong"), [(name, one) for name in ALERTS for one in WRONG[name]]
)
def test_alert_fires_alone(tmp_path: Path, alert: str, wrong: dict[str, str]) -> None:
    values = {f"count({firing(name)})": 1 if name == alert else None for name in ALERTS}
    check_queries(tmp_path, FINE | wrong, values, "60m")


@pytest.mark.parametrize("alert", ALERTS)
def test_alert_does_not_fire_for_what_passes(tmp_path: Path, alert: str) -> None:
    ever = f"count_over_time({firing(alert)}[1h])"
    check_queries(tmp_path, FINE | BORDERLINE[alert], {ever: None}, "60m")


def test_alerts_are_of_reasons_that_exist() -> None:
    expressions = " ".join(rule["expr"] for rule in ALERTS.values())
    reasons = "|".join(re.findall(r'reason=~?"([^"]+)"', expressions)).split("|")
    assert {*reasons} <= {error.code for error in all_errors()}


@pytest.mark.usefixtures("shares")
@pytest.mark.parametrize("alert", ALERTS)
def test_alert_is_of_series_that_exist(prometheus_url: str, alert: str) -> None:
    expression = ALERTS[alert]["expr"]
    names = re.findall(r"\b(?:rnp_\w+|up)(?:\{[^}]*\})?", expression)
    assert names
    for name in names:
        assert ask(prometheus_url, name), f"no series is {name}"


def test_alerts_are_loaded(prometheus_url: str) -> None:
    def healths() -> dict[str, str]:
        (group,) = get(f"{prometheus_url}/api/v1/rules").json()["data"]["groups"]
        return {rule["name"]: rule["health"] for rule in group["rules"]}

    wait_until(lambda: "unknown" not in healths().values(), "the first evaluation")
    assert healths() == dict.fromkeys(ALERTS, "ok")
