"""What the files of the deployment must agree on, with each other and with the project."""

import itertools
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from service.app import create_app
from service.settings import PREFIX, Settings

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
DOCKERFILE = (ROOT / "Dockerfile").read_text()
OPERATING = (ROOT / "docs/operating.md").read_text()


def load(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text())


SERVICES = load("docker-compose.yml")["services"]


def name_of(requirement: str) -> str:
    return re.split(r"[^A-Za-z0-9-]", requirement)[0].lower()


def test_compose_foreign_images_are_pinned_to_a_release() -> None:
    images = {service["image"] for service in SERVICES.values() if "build" not in service}
    assert images
    for image in images:
        assert re.search(r":v?\d+\.\d+\.\d+$", image), image


@pytest.mark.parametrize("name", SERVICES)
def test_compose_service_runs_with_least_privilege(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert "privileged" not in service


@pytest.mark.parametrize("name", SERVICES)
def test_compose_publishes_on_this_machine_only_unless_told(name: str) -> None:
    assert SERVICES[name]["ports"]
    for port in SERVICES[name]["ports"]:
        assert port.startswith(("127.0.0.1:", "${PRUNING_ADDRESS:-127.0.0.1}:")), port


def test_compose_reads_no_variable_that_means_something_else_elsewhere() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    assert set(re.findall(r"\$\{(\w+)", text)) == {"PRUNING_ADDRESS", "PRUNING_PORT"}
    assert set(re.findall(r"\b(\w+)=\S+ docker compose", OPERATING)) == {
        "PRUNING_ADDRESS",
        "PRUNING_PORT",
    }


@pytest.mark.parametrize("name", SERVICES)
def test_compose_mounts_exist(name: str) -> None:
    volumes = load("docker-compose.yml")["volumes"]
    for mount in SERVICES[name].get("volumes", []):
        source = mount.split(":")[0]
        assert (ROOT / source).exists() if source.startswith(".") else source in volumes, source


@pytest.mark.parametrize("path", ["docker-compose.yml", "docker-compose.gpu.yml"])
def test_compose_target_is_in_dockerfile(path: str) -> None:
    service = load(path)["services"]["service"]
    target = service["build"]["target"]
    assert re.search(rf"^FROM \S+ AS {target}$", DOCKERFILE, re.MULTILINE)
    assert service["image"].endswith(f":{target}")


def test_compose_cache_is_where_the_image_writes() -> None:
    assert "cache:/cache" in SERVICES["service"]["volumes"]
    assert "RNP_CACHE_DIR=/cache" in DOCKERFILE


def test_prometheus_target_is_the_service() -> None:
    (job,) = load("deploy/prometheus/prometheus.yml")["scrape_configs"]
    ((name, port),) = (t.split(":") for c in job["static_configs"] for t in c["targets"])
    assert name in SERVICES
    assert f"EXPOSE {port}\n" in DOCKERFILE


def test_grafana_data_source_is_the_one_the_dashboard_names() -> None:
    (source,) = load("deploy/grafana/provisioning/datasources/prometheus.yml")["datasources"]
    dashboard = json.loads((ROOT / "deploy/grafana/dashboards/compute.json").read_text())
    named = {p["datasource"]["uid"] for p in dashboard["panels"] if p["type"] != "row"}
    assert named == {source["uid"]}
    assert source["url"].split("//")[1].split(":")[0] in SERVICES


def test_grafana_home_dashboard_is_provisioned() -> None:
    (provider,) = load("deploy/grafana/provisioning/dashboards/dashboards.yml")["providers"]
    home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    folder, _, name = home.rpartition("/")
    assert provider["options"]["path"] == folder
    assert f"./deploy/grafana/dashboards:{folder}:ro" in SERVICES["grafana"]["volumes"]
    assert (ROOT / "deploy/grafana/dashboards" / name).exists()


def stage(name: str) -> str:
    """A stage of the Dockerfile, below those that it builds on."""
    text = rf"^FROM (\S+) AS {name}\n(.*?)(?=^FROM )"
    found = re.search(text, DOCKERFILE, re.MULTILINE | re.DOTALL)
    return stage(found[1]) + found[2] if found else ""


@pytest.mark.parametrize("target", ["cpu", "gpu"])
def test_dockerfile_runs_as_a_user_and_gets_signals(target: str) -> None:
    *_, user = re.findall(r"^USER (\S+)$", stage(target), re.MULTILINE)
    assert user not in ("root", "0")
    (command,) = re.findall(r"^CMD (.+)$", stage(target), re.MULTILINE)
    assert json.loads(command) == ["python", "-m", "service"]


def test_dockerfile_copies_what_the_user_can_read_whatever_the_umask_of_whoever_builds() -> None:
    source = DOCKERFILE.split(" AS source\n")[1].split("\nFROM ")[0]
    assert re.findall(r"^COPY (\w+) \1$", source, re.MULTILINE) == ["models", "service"]
    assert "RUN chmod -R a+rX ." in source
    # All else comes from other stages, or is read by root.
    rest = DOCKERFILE.replace(source, "")
    assert re.findall(r"^COPY (?!--from)(.+)$", rest, re.MULTILINE) == [
        "pyproject.toml constraints.txt ./"
    ]


def test_constraints_pin_every_dependency() -> None:
    pinned = re.findall(r"^([\w.-]+)==[\w.]+$", (ROOT / "constraints.txt").read_text(), re.M)
    extras = PROJECT["optional-dependencies"].values()
    wanted = {name_of(r) for r in itertools.chain(PROJECT["dependencies"], *extras)}
    assert wanted <= {name.lower().replace("_", "-") for name in pinned}


def test_extras_install_where_there_is_no_triton() -> None:
    extras = itertools.chain(*PROJECT["optional-dependencies"].values())
    wanted = [requirement for requirement in extras if name_of(requirement) == "triton"]
    assert wanted
    assert all(requirement.endswith("; sys_platform == 'linux'") for requirement in wanted)


@pytest.mark.parametrize("extra", PROJECT["optional-dependencies"])
def test_extra_brings_at_most_one_onnxruntime(extra: str) -> None:
    requirements = PROJECT["dependencies"] + PROJECT["optional-dependencies"][extra]
    runtimes = {name_of(r) for r in requirements if r.startswith("onnxruntime")}
    assert len(runtimes) == (extra in ("cpu", "gpu"))


def test_service_runs_without_torch() -> None:
    # What imports fail on, imports nothing.
    code = "import sys; sys.modules['torch'] = None; import service.app, service.engines.onnx_graph"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60)


def test_kubernetes_manifest_fits_the_service() -> None:
    (text,) = re.findall(r"```yaml\n(spec:\n.*?)```", OPERATING, re.DOTALL)
    pod = yaml.safe_load(text)["spec"]
    (container,) = pod["containers"]
    environment = {one["name"]: one["value"] for one in container["env"]}
    known = {PREFIX + name.upper() for name in Settings.model_fields}
    assert environment.keys() <= known
    waits = float(environment["RNP_LAME_DUCK_S"]) + Settings().drain_s
    assert pod["terminationGracePeriodSeconds"] > waits
    assert pod["enableServiceLinks"] is False
    app = create_app(Settings())
    routes = {route.path for route in app.routes}
    for kind in ("startupProbe", "readinessProbe", "livenessProbe"):
        probe = container[kind]["httpGet"]
        assert probe["path"] in routes, kind
        assert f"RNP_PORT={probe['port']}" in DOCKERFILE, kind
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert mounts.keys() == {"/cache", "/tmp"}
    assert set(mounts.values()) == {volume["name"] for volume in pod["volumes"]}
