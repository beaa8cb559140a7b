"""New versions: swapped in under load, refused when broken, and never in the way of a request."""

from __future__ import annotations

import shutil
import threading
import time
from pathlib import Path

import grpc
import pytest
import requests
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_log_pb2,
    prediction_service_pb2_grpc,
)

from serving.server.batching import BatchingOptions
from serving.server.model_watcher import LoadOptions
from serving.server.server import ModelServer

POLL = 0.05


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "shop"
    folder.mkdir()
    return folder


class Client:
    """What one gRPC client sees of the model `shop`."""

    def __init__(self, server: ModelServer) -> None:
        self.channel = grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}")
        self.predictions = prediction_service_pb2_grpc.PredictionServiceStub(self.channel)
        self.models = model_service_pb2_grpc.ModelServiceStub(self.channel)

    def predict(self, version: int | None = None) -> int:
        """Asks one query; returns the version that answered, having checked the answer's."""
        response = self.predictions.Predict(search_request(version), timeout=30)
        assert list(response.outputs["item_ids"].string_val) == [b"mug-a", b"mug-b", b""]
        answered = response.model_spec.version.value
        assert list(response.outputs["scores"].float_val) == [answered] * 3
        return answered

    def states(self) -> dict[int, tuple[str, str]]:
        """Returns state and error of each version."""
        request = get_model_status_pb2.GetModelStatusRequest()
        request.model_spec.name = "shop"
        state = get_model_status_pb2.ModelVersionStatus.State
        return {
            entry.version: (state.Name(entry.state), entry.status.error_message)
            for entry in self.models.GetModelStatus(request, timeout=30).model_version_status
        }


def search_request(version: int | None = None) -> predict_pb2.PredictRequest:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "shop"
    if version is not None:
        request.model_spec.version.value = version
    request.inputs["query"].CopyFrom(tf.make_tensor_proto(["mug"]))
    return request


def wait_until(condition, seconds: float = 20.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)


def ended_with_error(client: Client, version: int) -> bool:
    state, message = client.states().get(version, ("", ""))
    return state == "END" and bool(message)


def write_warmup(version_folder: Path, *requests_: predict_pb2.PredictRequest) -> Path:
    file = version_folder / "assets.extra" / "tf_serving_warmup_requests"
    file.parent.mkdir()
    with tf.io.TFRecordWriter(str(file)) as writer:
        for request in requests_:
            log = prediction_log_pb2.PredictionLog()
            log.predict_log.request.CopyFrom(request)
            writer.write(log.SerializeToString())
    return file


def add_version(base: Path, made: Path, version: int) -> None:
    """Moves a finished folder into the model's, in one step."""
    made.rename(base / str(version))


@pytest.mark.parametrize("batching", [None, BatchingOptions(every_model=True)])
def test_swapping_under_load_fails_no_request(base, publish, batching):
    publish(base, 1)
    answers: list[int] = []
    failures: list[BaseException] = []
    done = threading.Event()

    def ask_grpc() -> None:
        client = Client(server)
        while not done.is_set():
            try:
                answers.append(client.predict())
            except BaseException as error:
                failures.append(error)

    def ask_rest() -> None:
        url = f"http://127.0.0.1:{server.rest_port}/v1/models/shop:predict"
        session = requests.Session()
        while not done.is_set():
            try:
                response = session.post(url, json={"instances": ["mug"]}, timeout=30)
                assert response.status_code == 200, response.text
                (prediction,) = response.json()["predictions"]
                assert prediction["item_ids"] == ["mug-a", "mug-b", ""]
                (version,) = set(prediction["scores"])
                answers.append(int(version))
            except BaseException as error:
                failures.append(error)

    loading = LoadOptions(poll_seconds=POLL, batching=batching)
    with ModelServer(base, loading=loading) as server:
        threads = [threading.Thread(target=ask_grpc) for _ in range(3)]
        threads += [threading.Thread(target=ask_rest) for _ in range(2)]
        for thread in threads:
            thread.start()
        for version in range(2, 5):
            publish(base, version)
            wait_until(lambda version=version: version in answers[-20:])
        done.set()
        for thread in threads:
            thread.join()
        assert not failures, failures[:3]
        assert set(answers) == {1, 2, 3, 4}
        client = Client(server)
        wait_until(lambda: client.states()[3] == ("END", ""))
        assert client.states() == {
            4: ("AVAILABLE", ""),
            **dict.fromkeys(range(1, 4), ("END", "")),
        }
        with pytest.raises(grpc.RpcError, match=r"Servable not found.*Specific\(shop, 3\)"):
            client.predict(version=3)


def test_a_request_in_flight_keeps_its_version_and_never_a_third_is_loaded(
    base, publish, shop_export
):
    publish(base, 1)
    for version in (2, 3):  # made now, so that putting them in place takes no time
        shop_export(version)
    with ModelServer(base, loading=LoadOptions(poll_seconds=POLL)) as server:
        client = Client(server)
        slow = predict_pb2.PredictRequest()
        slow.model_spec.name = "shop"
        slow.model_spec.signature_name = "spin"
        slow.inputs["turns"].CopyFrom(tf.make_tensor_proto(500_000))
        running = client.predictions.Predict.future(slow, timeout=60)
        time.sleep(0.3)
        publish(base, 2)
        wait_until(lambda: client.predict() == 2)
        assert not running.done(), "the slow request was to outlive the swap"
        assert client.states() == {1: ("UNLOADING", ""), 2: ("AVAILABLE", "")}
        publish(base, 3)
        time.sleep(5 * POLL)
        assert running.done() or 3 not in client.states()
        response = running.result()
        assert response.model_spec.version.value == 1
        assert list(response.outputs["version"].float_val) == [1.0]
        wait_until(lambda: client.predict() == 3)


def test_a_truncated_graph_leaves_the_old_version_serving(base, publish, shop_export, tmp_path):
    publish(base, 1)
    draft = tmp_path / "draft"
    shutil.copytree(shop_export(2), draft)
    graph = draft / "saved_model.pb"
    whole = graph.read_bytes()
    graph.write_bytes(whole[: len(whole) // 2])
    with ModelServer(base, loading=LoadOptions(poll_seconds=POLL)) as server:
        client = Client(server)
        add_version(base, draft, 2)
        wait_until(lambda: ended_with_error(client, 2))
        assert client.predict() == 1
        assert client.states()[1] == ("AVAILABLE", "")
        # Put right, it is taken.
        (base / "2" / "saved_model.pb").write_bytes(whole)
        wait_until(lambda: client.predict() == 2)
        assert client.states()[2] == ("AVAILABLE", "")


@pytest.mark.parametrize("damage", ["an empty graph", "no variables", "cut variables"])
def test_other_broken_versions_leave_the_old_one_serving(
    base, publish, shop_export, tmp_path, damage
):
    publish(base, 1)
    draft = tmp_path / "draft"
    shutil.copytree(shop_export(2), draft)
    data = draft / "variables" / "variables.data-00000-of-00001"
    if damage == "an empty graph":
        (draft / "saved_model.pb").write_bytes(b"")
    elif damage == "no variables":
        shutil.rmtree(draft / "variables")
    else:
        data.write_bytes(data.read_bytes()[:2])
    with ModelServer(base, loading=LoadOptions(poll_seconds=POLL)) as server:
        client = Client(server)
        add_version(base, draft, 2)
        wait_until(lambda: ended_with_error(client, 2))
        assert client.predict() == 1
        publish(base, 3)
        wait_until(lambda: client.predict() == 3)


def test_warm_up_requests_are_replayed_and_one_that_fails_stops_the_version(
    base, publish, shop_export, tmp_path
):
    good = tmp_path / "good"
    shutil.copytree(shop_export(1), good)
    write_warmup(good, search_request(), search_request())
    add_version(base, good, 1)
    with ModelServer(base, loading=LoadOptions(poll_seconds=POLL)) as server:
        client = Client(server)
        assert client.predict() == 1

        wrong = tmp_path / "wrong"
        shutil.copytree(shop_export(2), wrong)
        request = search_request()
        request.model_spec.signature_name = "renamed"
        write_warmup(wrong, search_request(), request)
        add_version(base, wrong, 2)
        wait_until(lambda: ended_with_error(client, 2))
        assert 'Serving signature key "renamed" not found.' in client.states()[2][1]

        torn = tmp_path / "torn"
        shutil.copytree(shop_export(3), torn)
        file = write_warmup(torn, search_request())
        file.write_bytes(file.read_bytes()[:-3])
        add_version(base, torn, 3)
        wait_until(lambda: ended_with_error(client, 3))
        assert "Please verify your warmup data is in TFRecord format" in client.states()[3][1]

        many = tmp_path / "many"
        shutil.copytree(shop_export(4), many)
        write_warmup(many, *[search_request()] * 1001)
        add_version(base, many, 4)
        wait_until(lambda: ended_with_error(client, 4))
        assert "exceeds the maximum (1000)" in client.states()[4][1]
        assert client.predict() == 1


def test_a_server_may_start_before_its_first_version(base, publish):
    with ModelServer(base, loading=LoadOptions(poll_seconds=POLL)) as server:
        assert server.serving_versions == {"shop": None}
        client = Client(server)
        with pytest.raises(grpc.RpcError, match=r"Servable not found for request: Latest\(shop\)"):
            client.predict()
        with pytest.raises(grpc.RpcError, match="Could not find any versions of model shop"):
            client.states()
        (base / ".tmp-draft").mkdir()
        (base / "2").mkdir()  # no graph in it: not a version yet
        publish(base, 1)
        wait_until(lambda: server.serving_versions == {"shop": 1})
        assert client.predict() == 1


def test_a_broken_newest_version_at_start_does_not_hide_the_one_before(base, publish):
    publish(base, 1)
    publish(base, 2)
    (base / "2" / "saved_model.pb").write_bytes(b"not a graph")
    with ModelServer(base, loading=LoadOptions(poll_seconds=POLL)) as server:
        client = Client(server)
        assert client.predict() == 1
        assert ended_with_error(client, 2)


def test_a_folder_named_with_zeros_is_its_number(base, publish, shop_export):
    publish(base, 1)
    with ModelServer(base, loading=LoadOptions(poll_seconds=POLL)) as server:
        client = Client(server)
        shutil.copytree(shop_export(7), base / ".tmp-7")
        (base / ".tmp-7").rename(base / "007")
        wait_until(lambda: client.predict() == 7)
        assert client.predict(version=7) == 7
        assert client.states()[7] == ("AVAILABLE", "")
        publish(base, 8)
        wait_until(lambda: client.predict() == 8)


def test_deleting_the_newest_version_rolls_back_and_deleting_all_does_not(base, publish):
    publish(base, 1)
    publish(base, 2)
    with ModelServer(base, loading=LoadOptions(poll_seconds=POLL)) as server:
        client = Client(server)
        assert client.predict() == 2
        shutil.rmtree(base / "2")
        wait_until(lambda: client.predict() == 1)
        wait_until(lambda: client.states() == {1: ("AVAILABLE", "")})
        shutil.rmtree(base / "1")
        time.sleep(5 * POLL)
        assert client.predict() == 1


def test_the_same_export_under_a_new_number_survives_the_old_ones_unloading(base, shop_export):
    # Both versions name their lookup table alike.
    shutil.copytree(shop_export(1), base / "1")
    with ModelServer(base, loading=LoadOptions(poll_seconds=POLL)) as server:
        client = Client(server)
        shutil.copytree(shop_export(1), base / ".tmp-2")
        add_version(base, base / ".tmp-2", 2)
        wait_until(lambda: client.states().get(1) == ("END", ""))
        request = predict_pb2.PredictRequest()
        request.model_spec.name = "shop"
        request.model_spec.signature_name = "similar"
        request.inputs["item_id"].CopyFrom(tf.make_tensor_proto(["p2"]))
        response = client.predictions.Predict(request, timeout=30)
        assert list(response.outputs["item_ids"].string_val) == [b"2", b""]
