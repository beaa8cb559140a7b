"""Several models, version policies, labels and reloading, over the wire and from files."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest
import requests
import tensorflow as tf
from google.protobuf import text_format
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)
from tensorflow_serving.config import model_server_config_pb2

from serving.server.model_watcher import LoadOptions
from serving.server.server import ModelServer
from towers.errors import InputError

POLL = LoadOptions(poll_seconds=0.05)


def entry(name: str, base: Path | str, extra: str = "") -> str:
    return f'config {{ name: "{name}" base_path: "{base}" model_platform: "tensorflow" {extra} }}\n'


def listing(*entries: str) -> str:
    return f"model_config_list {{ {''.join(entries)} }}"


class Client:
    """tensorflow-serving-api's own stubs on one server."""

    def __init__(self, server: ModelServer) -> None:
        self.channel = grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}")
        self.predictions = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)
        self.models = model_service_pb2_grpc.ModelServiceStub(self.channel)

    def predict(self, model: str, version: int | None = None, label: str | None = None) -> int:
        request = predict_pb2.PredictRequest()
        request.model_spec.name = model
        if version is not None:
            request.model_spec.version.value = version
        if label is not None:
            request.model_spec.version_label = label
        request.inputs["query"].CopyFrom(tf.make_tensor_proto(["mug"]))
        response = self.predictions.Predict(request, timeout=30)
        answered = response.model_spec.version.value
        assert set(response.outputs["scores"].float_val) == {answered}
        return answered

    def states(self, model: str) -> dict[int, str]:
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = model
        state = get_model_status_pb2.ModelVersionStatus.State
        response = self.models.GetModelStatus(request, timeout=30)
        return {e.version: state.Name(e.state) for e in response.model_version_status}

    def reload(self, config: str) -> model_management_pb2.ReloadConfigResponse:
        request = model_management_pb2.ReloadConfigRequest(
            config=text_format.Parse(config, model_server_config_pb2.ModelServerConfig())
        )
        return self.models.HandleReloadConfigRequest(request, timeout=60)


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Callable[..., Client]]:
    """Starts a server on the text of a configuration; returns a client of it."""
    servers: list[ModelServer] = []

    def start(config: str, **options: object) -> Client:
        file = tmp_path / "models.config"
        file.write_text(config)
        server = ModelServer(model_config_file=file, loading=POLL, **options)
        server.start()
        servers.append(server)
        client = Client(server)
        client.server, client.file = server, file
        return client

    yield start
    for server in servers:
        server.stop()


def wait_until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def refusal(code: grpc.StatusCode, call: Callable[..., object], *arguments: object) -> str:
    with pytest.raises(grpc.RpcError) as raised:
        call(*arguments)
    assert raised.value.code() == code, raised.value.details()
    return raised.value.details()


@pytest.fixture
def folders(tmp_path: Path, publish: Callable[[Path, int], Path]) -> tuple[Path, Path]:
    """A model `a` of versions 1, 2, 3 and a model `b` of version 5."""
    for version in (1, 2, 3):
        publish(tmp_path / "a", version)
    publish(tmp_path / "b", 5)
    return tmp_path / "a", tmp_path / "b"


def test_several_models_each_by_its_policy(serve, folders, publish):
    a, b = folders
    client = serve(
        listing(
            entry("all", a, "model_version_policy { all {} }"),
            entry("two", a, "model_version_policy { latest { num_versions: 2 } }"),
            entry("some", a, "model_version_policy { specific { versions: 1 versions: 9 } }"),
            entry("b", b),
        )
    )
    assert client.states("all") == dict.fromkeys((3, 2, 1), "AVAILABLE")
    assert client.states("two") == dict.fromkeys((3, 2), "AVAILABLE")
    assert client.states("some") == {1: "AVAILABLE"}
    assert client.states("b") == {5: "AVAILABLE"}
    assert [client.predict(name) for name in ("all", "two", "some", "b")] == [3, 3, 1, 5]
    assert client.predict("all", version=1) == 1
    assert client.predict("two", version=2) == 2
    details = refusal(grpc.StatusCode.NOT_FOUND, client.predict, "some", 2)
    assert details == "Servable not found for request: Specific(some, 2)"
    publish(a, 4)
    wait_until(lambda: client.predict("two") == client.predict("all") == 4)
    wait_until(lambda: client.states("two").get(2) == "END")
    assert client.states("two") == {4: "AVAILABLE", 3: "AVAILABLE", 2: "END"}
    assert client.states("all") == dict.fromkeys((4, 3, 2, 1), "AVAILABLE")
    publish(a, 9)
    wait_until(lambda: client.states("some") == {9: "AVAILABLE", 1: "AVAILABLE"})
    shutil.rmtree(a / "2")
    wait_until(lambda: client.states("all").get(2) in (None, "END"))


def test_labels_name_versions_over_grpc_and_rest(serve, folders):
    a, _ = folders
    labels = (
        'version_labels { key: "stable" value: 1 } version_labels { key: "canary" value: 3 } '
        "model_version_policy { all {} }"
    )
    client = serve(listing(entry("a", a, labels)))
    assert client.predict("a", label="stable") == 1
    assert client.predict("a", label="canary") == 3
    details = refusal(grpc.StatusCode.INVALID_ARGUMENT, client.predict, "a", None, "nightly")
    assert details == "Unrecognized servable version label: nightly"
    url = f"http://127.0.0.1:{client.server.rest_port}/v1/models/a"
    answer = requests.post(f"{url}/labels/stable:predict", json={"instances": ["x"]}, timeout=30)
    assert answer.json()["predictions"][0]["scores"] == [1, 1, 1]
    metadata = requests.get(f"{url}/labels/canary/metadata", timeout=30).json()
    assert metadata["model_spec"]["version"] == "3"

    moved = labels.replace('"stable" value: 1', '"stable" value: 2')
    assert client.reload(listing(entry("a", a, moved))).status.error_code == 0
    assert client.predict("a", label="stable") == 2
    away = labels.replace('"stable" value: 1', '"stable" value: 7')
    details = refusal(
        grpc.StatusCode.FAILED_PRECONDITION, client.reload, listing(entry("a", a, away))
    )
    assert details == (
        "Request to assign label to version 7 of model a, which is not currently available for "
        "inference"
    )
    assert client.predict("a", label="stable") == 2, "a refused reload changed something"


def test_new_labels_may_come_before_their_versions_where_that_is_allowed(serve, folders, publish):
    a, _ = folders
    early = 'version_labels { key: "next" value: 4 }'
    with pytest.raises(InputError, match="Request to assign label to version 4 of model a"):
        serve(listing(entry("a", a, early)))
    client = serve(listing(entry("a", a, early)), labels_for_unavailable=True)
    details = refusal(grpc.StatusCode.NOT_FOUND, client.predict, "a", None, "next")
    assert details == "Servable not found for request: Specific(a, 4)"
    publish(a, 4)
    wait_until(lambda: client.predict("a") == 4)
    assert client.predict("a", label="next") == 4
    # A label that is in use cannot be moved away from what serves.
    moved = 'version_labels { key: "next" value: 8 }'
    refusal(grpc.StatusCode.FAILED_PRECONDITION, client.reload, listing(entry("a", a, moved)))


def test_reloading_adds_changes_and_removes_models(serve, folders):
    a, b = folders
    client = serve(listing(entry("a", a)))
    assert client.states("a") == {3: "AVAILABLE"}
    refusal(grpc.StatusCode.NOT_FOUND, client.predict, "b")
    policy = "model_version_policy { specific { versions: 1 } }"
    client.reload(listing(entry("a", a, policy), entry("b", b)))
    assert client.predict("b") == 5  # at once: a reload waits for new models
    wait_until(lambda: client.states("a") == {3: "END", 1: "AVAILABLE"})
    client.reload(listing(entry("b", b)))
    details = refusal(
        grpc.StatusCode.NOT_FOUND, lambda: wait_until(lambda: not client.predict("a"))
    )
    assert details == "Servable not found for request: Latest(a)"
    client.reload(listing(entry("a", a), entry("b", b)))
    assert client.predict("a") == 3


def test_a_model_that_does_not_come_is_told_and_waited_for(serve, folders, publish, tmp_path):
    a, _ = folders
    (tmp_path / "broken" / "1").mkdir(parents=True)
    (tmp_path / "broken" / "1" / "saved_model.pb").write_bytes(b"no graph")
    client = serve(listing(entry("a", a)))
    wanted = listing(
        entry("a", a), entry("broken", tmp_path / "broken"), entry("late", tmp_path / "late")
    )
    details = refusal(grpc.StatusCode.UNKNOWN, client.reload, wanted)
    assert details.startswith("2 model(s) did not become available: {{name: broken version: 1 due")
    assert client.predict("a") == 3
    publish(tmp_path / "late", 1)
    wait_until(lambda: client.server.serving_versions["late"] == 1)
    assert client.predict("late") == 1


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("", "ServerModelConfig type not supported by HandleReloadConfigRequest"),
        (
            listing(entry("m", Path("m"))),
            "Expected model m to have an absolute path or URI; got base_path()=m",
        ),
        (
            listing(entry("m", Path("/m")), entry("m", Path("/n"))),
            "Illegal to list model m multiple times in config list",
        ),
        (
            'model_config_list { config { name: "m" base_path: "/m" } }',
            "Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
            "ModelServerConfig::model_platform, model name is m",
        ),
        (
            listing(entry("m", Path("/m"), "model_type: TENSORFLOW")),
            "Illegal setting both ModelServerConfig::model_type",
        ),
        (
            'model_config_list { config { name: "m" base_path: "/m" model_platform: "torch" } }',
            "Model m requests unsupported platform torch",
        ),
        ('model_config_list { config { base_path: "/m" } }', "model without a name"),
    ],
)
def test_configurations_that_are_refused(serve, folders, tmp_path, config, message):
    a, _ = folders
    client = serve(listing(entry("a", a)))
    assert message in refusal(grpc.StatusCode.INVALID_ARGUMENT, client.reload, config)
    assert client.predict("a") == 3
    (tmp_path / "bad.config").write_text(config)
    with pytest.raises(InputError) as raised:
        ModelServer(model_config_file=tmp_path / "bad.config")
    assert str(tmp_path / "bad.config") in str(raised.value)
    assert message in str(raised.value)


@pytest.mark.parametrize("text", ["model_config_list {", "models { }", "\xff"])
def test_a_file_that_is_no_configuration(tmp_path, text):
    (tmp_path / "bad.config").write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match=r"bad\.config: cannot be read as a ModelServerConfig"):
        ModelServer(model_config_file=tmp_path / "bad.config")
    with pytest.raises(InputError, match=r"none\.config: cannot be read"):
        ModelServer(model_config_file=tmp_path / "none.config")


def test_a_changed_file_is_followed_and_a_broken_one_is_not(serve, folders):
    a, b = folders
    client = serve(listing(entry("a", a)), model_config_poll_seconds=0.05)
    client.file.write_text(listing(entry("a", a), entry("b", b)))
    wait_until(lambda: client.server.serving_versions.get("b") == 5)
    assert client.predict("b") == 5
    client.file.write_text("model_config_list {")
    time.sleep(0.3)
    assert client.predict("a") == 3
    client.file.write_text(listing(entry("b", b)))
    wait_until(lambda: "a" not in client.server.serving_versions)
    wait_until(lambda: client.states("a") == {3: "END"})
    refusal(grpc.StatusCode.NOT_FOUND, client.predict, "a")


def test_a_request_in_flight_outlives_the_removal_of_its_model(serve, folders):
    a, b = folders
    client = serve(listing(entry("a", a), entry("b", b)))
    slow = predict_pb2.PredictRequest()
    slow.model_spec.name = "a"
    slow.model_spec.signature_name = "spin"
    slow.inputs["turns"].CopyFrom(tf.make_tensor_proto(1_000_000))
    running = client.predictions.Predict.future(slow, timeout=60)
    time.sleep(0.3)
    client.reload(listing(entry("b", b)))
    wait_until(lambda: client.states("a") == {3: "UNLOADING"})
    assert not running.done(), "the slow request was to outlive the reload"
    assert list(running.result().outputs["version"].float_val) == [3.0]
    wait_until(lambda: client.states("a") == {3: "END"})


def test_loading_is_tried_again_a_few_times(tmp_path, publish, caplog):
    base = tmp_path / "shop"
    publish(base, 1)
    data = base / "1" / "variables" / "variables.data-00000-of-00001"
    data.rename(tmp_path / "away")
    options = LoadOptions(poll_seconds=0.05, max_retries=2, retry_seconds=0.2)

    def failures() -> int:
        return sum("version 1 cannot be served" in message for message in caplog.messages)

    with ModelServer(base, loading=options) as server:
        wait_until(lambda: failures() == 3)
        time.sleep(1)
        assert failures() == 3
        assert Client(server).states("shop") == {1: "END"}
        # The retries are over, but changed files are worth another try.
        (tmp_path / "away").rename(data)
        wait_until(lambda: server.serving_versions == {"shop": 1})


def test_loading_is_tried_again_where_the_folder_is_looked_at_once(tmp_path, publish):
    base = tmp_path / "shop"
    publish(base, 1)
    data = base / "1" / "variables" / "variables.data-00000-of-00001"
    data.rename(tmp_path / "away")
    options = LoadOptions(poll_seconds=0, max_retries=50, retry_seconds=0.2)
    with ModelServer(base, loading=options) as server:
        assert Client(server).states("shop") == {1: "END"}
        publish(base, 2)
        (tmp_path / "away").rename(data)
        wait_until(lambda: server.serving_versions == {"shop": 1})
        time.sleep(1)
        assert Client(server).states("shop") == {1: "AVAILABLE"}, "2 came after the look"


def test_a_refused_file_is_tried_until_it_is_taken(serve, folders, publish, caplog):
    a, _ = folders
    client = serve(listing(entry("a", a)), model_config_poll_seconds=0.05)
    label = 'version_labels { key: "next" value: 4 }'
    client.file.write_text(listing(entry("a", a, label)))
    wait_until(lambda: "assign label to version 4" in caplog.text)
    time.sleep(0.5)
    refusal(grpc.StatusCode.INVALID_ARGUMENT, client.predict, "a", None, "next")
    publish(a, 4)
    wait_until(lambda: client.predict("a") == 4)
    time.sleep(0.5)
    assert client.predict("a", label="next") == 4
    assert caplog.text.count("assign label to version 4") == 1


def test_the_flags_of_tensorflow_serving(tmp_path, publish, start_server):
    publish(tmp_path / "a", 1)
    config = tmp_path / "models.config"
    config.write_text(
        listing(entry("a", f"file://{tmp_path / 'a'}", 'version_labels { key: "stable" value: 1 }'))
    )
    monitoring, tokens = tmp_path / "monitoring.config", tmp_path / "tokens"
    monitoring.write_text('prometheus_config { enable: true path: "/metrics" }')
    tokens.write_text("secret\n")
    server = start_server(
        tmp_path / "ignored",
        f"--model_config_file={config}",
        "--file_system_poll_wait_seconds=1",
        "--enable_model_warmup=false",
        "--allow_version_labels_for_unavailable_models",
        "--max_num_load_retries=1",
        "--rest_api_num_threads=3",
        "--flush_filesystem_caches=false",
        "--tensorflow_inter_op_parallelism=2",
        "--rest_api_timeout_in_ms=20000",
        "--grpc_channel_arguments=grpc.max_connection_age_ms=2000",
        f"--monitoring_config_file={monitoring}",
        f"--auth_token_file={tokens}",
        "--max_requests_per_second=100",
    )
    assert "Model a: version 1 is served\n" in server.printed
    url = f"{server.rest}/v1/models/a/labels/stable:predict"
    assert requests.post(url, json={"instances": ["x"]}, timeout=30).status_code == 401
    bearer = {"Authorization": "Bearer secret"}
    answer = requests.post(url, json={"instances": ["x"]}, headers=bearer, timeout=30)
    assert answer.status_code == 200, answer.text
    metrics = requests.get(f"{server.rest}/metrics", headers=bearer, timeout=30).text
    assert 'request_count{model_name="a",status="OK"} 1.0' in metrics
