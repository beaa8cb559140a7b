"""The files in `deploy/`: their syntax, their paths, and that their parts name each other."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import requests
import yaml

from serving.server.batching import read_batching_parameters
from serving.server.text_proto import MonitoringConfig, read_text_proto
from towers.cli.serve import command as serve

DEPLOY = Path(__file__).parents[2] / "deploy"
MODEL = "sample-shop"


@pytest.fixture(scope="module")
def compose():
    return yaml.safe_load((DEPLOY / "docker-compose.yml").read_text())["services"]["serving"]


@pytest.fixture(scope="module")
def manifests():
    documents = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
    return {(d["kind"], d["metadata"]["name"]): d for d in documents}


@pytest.fixture(scope="module")
def pod(manifests):
    return manifests["Deployment", MODEL]["spec"]["template"]


def flags(arguments: list[str]) -> dict[str, str]:
    """Flags and values; our own server, which takes the same, has to know them."""
    known = {option for parameter in serve.params for option in parameter.opts}
    found = dict(argument.split("=", 1) for argument in arguments)
    assert {name.replace("_", "-") for name in found} <= known
    return found


def test_what_compose_mounts_is_there(compose):
    mounts = dict(volume.split(":")[:2] for volume in compose["volumes"])
    model = DEPLOY / "../saved_models" / MODEL
    assert {target: (DEPLOY / source).resolve() for source, target in mounts.items()} == {
        f"/models/{MODEL}": model.resolve(),  # where the demo puts it
        "/config/monitoring.config": DEPLOY / "monitoring.config",
        "/config/batching.config": DEPLOY / "batching.config",
    }
    assert compose["environment"] == {"MODEL_NAME": MODEL}
    assert set(flags(compose["command"]).values()) - {"true"} <= set(mounts.values())
    assert compose["ports"] == ["8500:8500", "8501:8501"]
    assert f"GET /v1/models/{MODEL}/metadata " in compose["healthcheck"]["test"][-1]


def test_the_pod_mounts_what_its_flags_name(manifests, pod):
    (container,) = pod["spec"]["containers"]
    volumes = {volume["name"]: volume for volume in pod["spec"]["volumes"]}
    mounts = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
    assert set(mounts) == {"/models", "/config"}  # the image looks in /models/MODEL_NAME
    assert container["env"] == [{"name": "MODEL_NAME", "value": MODEL}]
    config = manifests["ConfigMap", mounts["/config"]["configMap"]["name"]]["data"]
    named = set(flags(container["args"]).values()) - {"true"}
    assert named == {f"/config/{name}" for name in config}
    for name, text in config.items():
        assert text == (DEPLOY / name).read_text()


def test_the_configurations_are_tensorflow_servings(pod):
    assert read_batching_parameters(DEPLOY / "batching.config").max_batch_size == 32
    config = read_text_proto(DEPLOY / "monitoring.config", MonitoringConfig()).prometheus_config
    assert config.enable
    assert pod["metadata"]["annotations"]["prometheus.io/path"] == config.path


def test_parts_find_each_other(manifests, pod):
    labels = pod["metadata"]["labels"]
    assert manifests["Deployment", MODEL]["spec"]["selector"]["matchLabels"] == labels
    assert manifests["PodDisruptionBudget", MODEL]["spec"]["selector"]["matchLabels"] == labels
    service = manifests["Service", MODEL]["spec"]
    assert service["selector"] == labels
    (container,) = pod["spec"]["containers"]
    ports = {port["name"]: port["containerPort"] for port in container["ports"]}
    assert ports == {"grpc": 8500, "rest": 8501}
    assert {p["targetPort"]: p["port"] for p in service["ports"]} == ports
    assert pod["metadata"]["annotations"]["prometheus.io/port"] == str(ports["rest"])
    target = manifests["HorizontalPodAutoscaler", MODEL]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) in manifests
    for probe in ("startupProbe", "readinessProbe"):
        assert container[probe]["httpGet"] == {
            "path": f"/v1/models/{MODEL}/metadata",
            "port": "rest",
        }
    assert container["livenessProbe"]["tcpSocket"]["port"] == "grpc"


def test_the_autoscaler_follows_a_metric_that_is_there(manifests, pod, shop_server):
    (metric,) = manifests["HorizontalPodAutoscaler", MODEL]["spec"]["metrics"]
    rules = yaml.safe_load(manifests["ConfigMap", "serving-adapter-rules"]["data"]["config.yaml"])
    (rule,) = rules["rules"]
    assert rule["name"]["as"] == metric["pods"]["metric"]["name"]
    series = re.search(r'__name__="([^"]+)"', rule["seriesQuery"])[1]
    address = f"http://127.0.0.1:{shop_server.rest_port}"
    requests.post(f"{address}/v1/models/shop:predict", json={"inputs": ["mug"]}, timeout=30)
    path = pod["metadata"]["annotations"]["prometheus.io/path"]
    page = requests.get(f"{address}{path}", timeout=30).text
    assert f'\n{series}{{model_name="shop",status="OK"}} ' in page


def test_the_probes_tell_a_model_that_serves(shop_server, compose):
    *shell, script = compose["healthcheck"]["test"][1:]
    for model, status in (("shop", 0), (MODEL, 1)):
        check = script.replace("8501", str(shop_server.rest_port)).replace(MODEL, model)
        assert subprocess.run([*shell, check], timeout=30).returncode == status
    address = f"http://127.0.0.1:{shop_server.rest_port}/v1/models"
    assert requests.get(f"{address}/shop/metadata", timeout=30).status_code == 200
    assert requests.get(f"{address}/{MODEL}/metadata", timeout=30).status_code == 404
