"""What keeps a server safe: TLS, tokens, rates, overload, deadlines; metrics and logs."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import requests
import tensorflow as tf
from prometheus_client.parser import text_string_to_metric_families
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from serving.client import RetrievalClient, ServingError
from serving.server.access import Access, read_tokens
from serving.server.server import ModelServer
from towers.errors import InputError


@pytest.fixture
def serve(tmp_path: Path, publish: Callable[[Path, int], Path]) -> Iterator[Callable[..., Any]]:
    """Starts a server of `shop`, version 1, with options."""
    servers: list[ModelServer] = []
    publish(tmp_path / "shop", 1)

    def start(**options: Any) -> ModelServer:
        server = ModelServer(tmp_path / "shop", **options)
        server.start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.stop()


def predict_request(signature: str = "", **inputs: Any) -> predict_pb2.PredictRequest:
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "shop"
    request.model_spec.signature_name = signature
    for name, value in (inputs or {"query": ["mug"]}).items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return request


def ask(channel: grpc.Channel, *arguments: Any, **call: Any) -> predict_pb2.PredictResponse:
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    return stub.Predict(predict_request(*arguments), **{"timeout": 30, **call})


def spin(stub: Any, turns: int, **call: Any) -> grpc.Future:
    request = predict_request("spin", turns=np.int32(turns))
    return stub.Predict.future(request, **{"timeout": 60, **call})


def url(server: ModelServer, rest: str = ":predict") -> str:
    return f"http://127.0.0.1:{server.rest_port}/v1/models/shop{rest}"


def post(server: ModelServer, **options: Any) -> requests.Response:
    return requests.post(url(server), json={"instances": ["mug"]}, timeout=30, **options)


def code_of(call: Callable[[], Any]) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as raised:
        call()
    return raised.value.code()


# TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """An authority, a server and a client that it signed, and a client that signed itself."""
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    new = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
    openssl("req", "-x509", *new, "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=ca")
    openssl("req", "-x509", *new, "-keyout", "own.key", "-out", "own.crt", "-subj", "/CN=own")
    (folder / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1")
    for name in ("server", "client"):
        request = ("-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        openssl("req", *new, *request)
        signed = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial", "-extfile", "names")
        openssl("x509", "-req", "-in", f"{name}.csr", *signed, "-out", f"{name}.crt")
    return {path.name: path.read_bytes() for path in folder.glob("*.[ck][re][yt]")}


def ssl_config(folder: Path, **fields: Any) -> Path:
    lines = [
        f"{name}: {json.dumps(value.decode() if isinstance(value, bytes) else value)}"
        for name, value in fields.items()
    ]
    (folder / "ssl.config").write_text("\n".join(lines))
    return folder / "ssl.config"


def secure(server: ModelServer, authority: bytes, *pair: bytes) -> grpc.Channel:
    credentials = grpc.ssl_channel_credentials(authority, *pair)
    return grpc.secure_channel(f"localhost:{server.grpc_port}", credentials)


def test_tls(serve, tmp_path, certificates):
    pair = {
        "server_key": certificates["server.key"],
        "server_cert": certificates["server.crt"],
    }
    server = serve(ssl_config_file=ssl_config(tmp_path, **pair), host="localhost")
    with secure(server, certificates["ca.crt"]) as channel:
        assert list(ask(channel).outputs["scores"].float_val) == [1.0] * 3
    with secure(server, certificates["own.crt"]) as channel:
        assert code_of(lambda: ask(channel, timeout=5)) == grpc.StatusCode.UNAVAILABLE
    with grpc.insecure_channel(f"localhost:{server.grpc_port}") as channel:
        assert code_of(lambda: ask(channel, timeout=5)) == grpc.StatusCode.UNAVAILABLE


def test_mutual_tls(serve, tmp_path, certificates):
    config = ssl_config(
        tmp_path,
        server_key=certificates["server.key"],
        server_cert=certificates["server.crt"],
        custom_ca=certificates["ca.crt"],
        client_verify=True,
    )
    server = serve(ssl_config_file=config, host="localhost")
    authority = certificates["ca.crt"]
    with secure(server, authority, certificates["client.key"], certificates["client.crt"]) as known:
        assert list(ask(known).outputs["scores"].float_val) == [1.0] * 3
    credentials = grpc.ssl_channel_credentials(
        authority, certificates["client.key"], certificates["client.crt"]
    )
    address = f"localhost:{server.grpc_port}"
    with RetrievalClient(address, model="shop", credentials=credentials) as client:
        assert client.search(["mug"], k=1) == [[("mug-a", 1.0)]]
    with pytest.raises(InputError, match="https URL"):
        RetrievalClient(address, model="shop", transport="rest", credentials=credentials)
    with secure(server, authority) as nobody:
        assert code_of(lambda: ask(nobody, timeout=5)) == grpc.StatusCode.UNAVAILABLE
    with secure(server, authority, certificates["own.key"], certificates["own.crt"]) as stranger:
        assert code_of(lambda: ask(stranger, timeout=5)) == grpc.StatusCode.UNAVAILABLE


def test_tls_configurations_that_are_refused(tmp_path, publish, certificates):
    publish(tmp_path / "shop", 1)
    key, certificate = certificates["server.key"], certificates["server.crt"]
    for fields, message in (
        ({}, "server_key and server_cert are no pair"),
        ({"server_key": key}, "server_key and server_cert are no pair"),
        ({"server_key": certificates["own.key"], "server_cert": certificate}, "are no pair"),
        ({"server_key": key, "server_cert": certificate, "client_verify": True}, "custom_ca"),
        ({"colour": "red"}, "cannot be read as a SSLConfig"),
    ):
        with pytest.raises(InputError, match=message):
            ModelServer(tmp_path / "shop", ssl_config_file=ssl_config(tmp_path, **fields))


def test_channel_arguments(serve, tmp_path):
    server = serve(grpc_channel_arguments="grpc.max_receive_message_length=2000,grpc.primary=x")
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        ask(channel)
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        large = predict_request("", query=["x" * 3000])
        code = code_of(lambda: stub.Predict(large, timeout=30))
        assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
    for wrong in ("grpc.x", "=1"):
        with pytest.raises(InputError, match="expected NAME=VALUE"):
            ModelServer(tmp_path / "shop", grpc_channel_arguments=wrong)


# Tokens and rates


def test_tokens_are_asked_for_on_both_ports(serve, tmp_path):
    (tmp_path / "tokens").write_text("# of the shop\n\nfirst-token\nsecond-token\n")
    server = serve(access=Access(read_tokens(tmp_path / "tokens")))
    bearer = {"Authorization": "Bearer second-token"}
    assert post(server, headers=bearer).status_code == 200
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic second-token"}):
        answer = post(server, headers=headers)
        assert answer.status_code == 401
        assert answer.headers["WWW-Authenticate"] == "Bearer"
        assert "bearer token" in answer.json()["error"]
    for rest in ("", "/metadata"):
        assert requests.get(url(server, rest), timeout=30).status_code == 401
        assert requests.get(url(server, rest), headers=bearer, timeout=30).status_code == 200
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        ask(channel, metadata=[("authorization", "bearer first-token")])
        assert code_of(lambda: ask(channel)) == grpc.StatusCode.UNAUTHENTICATED
        wrong = [("authorization", "Bearer first-toke")]
        assert code_of(lambda: ask(channel, metadata=wrong)) == grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize("text", [None, "", "# only a comment\n"])
def test_token_files_without_tokens_are_refused(tmp_path, text):
    if text is not None:
        (tmp_path / "tokens").write_text(text)
    with pytest.raises(InputError, match="tokens:"):
        read_tokens(tmp_path / "tokens")


def test_each_client_has_a_rate(serve):
    server = serve(access=Access(["a", "b"], requests_per_second=3))
    headers = {name: {"Authorization": f"Bearer {name}"} for name in "ab"}
    started = time.monotonic()
    codes = [post(server, headers=headers["a"]).status_code for _ in range(6)]
    assert time.monotonic() - started < 1, "too slow a machine for this test"
    assert codes[:3] == [200] * 3
    assert codes[-1] == 429
    assert post(server, headers=headers["b"]).status_code == 200
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        metadata = [("authorization", "Bearer a")]
        code = code_of(lambda: [ask(channel, metadata=metadata) for _ in range(5)])
        assert code == grpc.StatusCode.RESOURCE_EXHAUSTED
    time.sleep(1.1)
    assert post(server, headers=headers["a"]).status_code == 200
    with pytest.raises(InputError, match="has to be above 0"):
        Access(requests_per_second=0)


def test_the_clients_remembered_are_bounded():
    access = Access(requests_per_second=1)
    for number in range(10_050):
        access.check(None, str(number))
    assert len(access._left) == 10_000


@pytest.mark.parametrize("transport", ["grpc", "rest"])
def test_our_own_client_sends_a_token(serve, transport):
    server = serve(access=Access(["t0ken"]))
    port = server.grpc_port if transport == "grpc" else server.rest_port
    with RetrievalClient(
        f"127.0.0.1:{port}", model="shop", transport=transport, token="t0ken"
    ) as client:
        assert client.search(["mug"], k=1) == [[("mug-a", 1.0)]]
        assert client.status()[0].state == "AVAILABLE"
    for token in (None, "other"):
        with (
            RetrievalClient(
                f"127.0.0.1:{port}", model="shop", transport=transport, token=token
            ) as client,
            pytest.raises(ServingError) as raised,
        ):
            client.search(["mug"])
        assert raised.value.code == "UNAUTHENTICATED"
    for token in ("", " ", "two\nlines", "schlüssel"):
        with pytest.raises(InputError, match="token"):
            RetrievalClient("localhost:1", model="shop", transport=transport, token=token)


# Overload and deadlines


def test_overload_is_refused_not_queued(serve):
    server = serve(workers=1, max_pending=1)
    body = {"signature_name": "spin", "inputs": 400_000}
    codes: list[int] = []

    def ask_slowly() -> None:
        codes.append(requests.post(url(server), json=body, timeout=60).status_code)

    threads = [threading.Thread(target=ask_slowly) for _ in range(2)]
    for thread in threads:
        thread.start()
    time.sleep(0.3)
    refused = post(server)
    assert refused.status_code == 429
    assert "Too many requests" in refused.json()["error"]
    for thread in threads:
        thread.join()
    assert codes == [200, 200]
    assert post(server).status_code == 200
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        running = [spin(stub, 400_000) for _ in range(2)]
        time.sleep(0.3)
        assert code_of(lambda: ask(channel)) == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert [call.result().outputs["turns"].int_val[0] for call in running] == [400_000] * 2
        ask(channel)


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo", "stream_stream"),
        ("/tensorflow.serving.PredictionService/Predict", "stream_unary"),
        ("/grpc.health.v1.Health/Watch", "stream_stream"),
    ],
)
def test_calls_that_send_nothing_do_not_hold_up_the_others(serve, method, kind):
    server = serve(workers=1, max_pending=1, message_seconds=6, access=Access(["t0ken"]))
    address, metadata = f"127.0.0.1:{server.grpc_port}", [("authorization", "Bearer t0ken")]

    with grpc.insecure_channel(address) as idle, grpc.insecure_channel(address) as channel:
        started = time.monotonic()
        call = getattr(idle, kind)(method)
        open_call = call.future if kind == "stream_unary" else call
        calls = [open_call(iter(threading.Event().wait, True)) for _ in range(100)]
        ask(channel, metadata=metadata)
        assert time.monotonic() - started < 6, "too slow a machine for this test"
        assert not any(call.done() for call in calls)
        codes = [code_of(call.result) for call in calls]
        assert set(codes) == {grpc.StatusCode.CANCELLED}
        assert time.monotonic() - started < 20
        ask(channel, metadata=metadata)


def page(server: ModelServer, path: str = "/monitoring/prometheus/metrics") -> str:
    answer = requests.get(f"http://127.0.0.1:{server.rest_port}{path}", timeout=30)
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"].startswith("text/plain")
    return answer.text


def samples(text: str) -> dict[tuple[str, ...], float]:
    """Returns each sample of a page by its name and its labels' values, sorted.

    The parser adds `_total` to counters, as OpenMetrics has it.
    """
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def test_what_nobody_waits_for_is_not_begun(serve):
    server = serve(workers=1, rest_timeout_seconds=0.5)
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        running = spin(stub, 1_000_000)
        time.sleep(0.2)
        late = [spin(stub, 1, timeout=0.2) for _ in range(3)]
        assert [call.code() for call in late] == [grpc.StatusCode.DEADLINE_EXCEEDED] * 3
        cancelled = spin(stub, 1)
        cancelled.cancel()
        running.result()
        ask(channel)
    body = {"signature_name": "spin", "inputs": 1_000_000}
    started = time.monotonic()
    slow = requests.post(url(server), json=body, timeout=60)
    assert (slow.status_code, slow.json()) == (504, {"error": "Timed out after 0.5 s."})
    assert time.monotonic() - started < 1.5
    queued = post(server)  # times out behind the slow one
    assert queued.status_code == 504
    deadline = time.monotonic() + 30
    while post(server).status_code != 200:
        assert time.monotonic() < deadline
    found = samples(page(server))
    answered = found[(":tensorflow:serving:request_count_total", "OK", "shop")]
    # A long and a short request over gRPC, a short one over REST: what the others were told counts.
    assert answered == 3
    assert found[(":tensorflow:serving:request_count_total", "DEADLINE_EXCEEDED", "shop")] >= 2
    # None of those that waited in vain was begun; the one that took too long ran to its end.
    assert found[(":tensorflow:serving:runtime_latency_count", "Predict", "TF1", "shop")] == 4


# Metrics and logs


def test_metrics_have_tensorflow_servings_names(serve, tmp_path):
    server = serve()
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        for _ in range(3):
            ask(channel)
        code_of(lambda: ask(channel, "nosuch"))
    post(server)
    unknown = f"http://127.0.0.1:{server.rest_port}/v1/models/no{{}}:predict"
    for number in range(3):
        requests.post(unknown.format(number), json={"instances": ["x"]}, timeout=30)
    text = page(server)
    count, latency = ":tensorflow:serving:request_count", ":tensorflow:serving:request_latency"
    assert f"# TYPE {count} counter" in text.splitlines()
    assert f"# TYPE {latency} histogram" in text.splitlines()
    assert f'{count}{{model_name="shop",status="OK"}} 4.0' in text.splitlines()
    found = samples(text)
    assert found[(f"{count}_total", "OK", "shop")] == 4
    assert found[(f"{count}_total", "FAILED_PRECONDITION", "shop")] == 1
    assert found[(f"{count}_total", "", "NOT_FOUND")] == 3  # names that clients make up are one
    assert found[(f"{latency}_count", "GRPC", "Predict", "shop")] == 3
    assert found[(f"{latency}_count", "REST", "predict", "shop")] == 1
    assert found[(f"{latency}_bucket", "10.0", "GRPC", "Predict", "shop")] == 0
    assert found[(f"{latency}_bucket", "18.0", "GRPC", "Predict", "shop")] == 0
    assert found[(f"{latency}_bucket", "+Inf", "GRPC", "Predict", "shop")] == 3
    assert 0 < found[(f"{latency}_sum", "GRPC", "Predict", "shop")] < 3e7  # microseconds
    assert found[(":tensorflow:serving:runtime_latency_count", "Predict", "TF1", "shop")] == 4
    exported = (tmp_path / "shop" / "1" / "saved_model.pb").stat().st_mtime
    assert found[("towers_export_timestamp_seconds", "1", "shop")] == pytest.approx(exported)
    assert "_created" not in text


def test_refusals_are_counted_and_logged(serve, caplog):
    caplog.set_level("INFO")
    server = serve(workers=1, max_pending=0, max_request_bytes=1000, log_requests=True)
    long = requests.post(url(server), json={"instances": ["x" * 2000]}, timeout=30)
    assert long.status_code == 413
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        running = spin(stub, 400_000)
        time.sleep(0.3)
        assert code_of(lambda: ask(channel)) == grpc.StatusCode.RESOURCE_EXHAUSTED
        running.result()
    slow = threading.Thread(
        target=lambda: requests.post(
            url(server), json={"signature_name": "spin", "inputs": 400_000}, timeout=60
        )
    )
    slow.start()
    time.sleep(0.3)
    assert post(server).status_code == 429
    slow.join()
    found = samples(page(server))
    assert found[(":tensorflow:serving:request_count_total", "RESOURCE_EXHAUSTED", "shop")] == 3
    refused = [entry for entry in logged(caplog) if entry["status"] == "RESOURCE_EXHAUSTED"]
    assert [entry["entrypoint"] for entry in refused] == ["REST", "GRPC", "REST"]


def test_queries_without_results_are_counted(tmp_path):
    class Finds(tf.Module):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "query")])
        def search(self, query: tf.Tensor) -> dict[str, tf.Tensor]:
            found = tf.where(tf.strings.regex_full_match(query, "known.*"), query, "")
            return {"item_ids": tf.stack([found, tf.zeros_like(found)], axis=1)}

    module = Finds()
    tf.saved_model.save(module, str(tmp_path / "finds" / "1"), signatures=module.search)
    with ModelServer(tmp_path / "finds") as server:
        address = f"http://127.0.0.1:{server.rest_port}/v1/models/finds:predict"
        for queries in (["known", "other", "known 2"], ["other", "another"], []):
            requests.post(address, json={"inputs": queries}, timeout=30).raise_for_status()
        assert samples(page(server))[("towers_empty_results_total", "finds")] == 3


@pytest.mark.parametrize(
    ("text", "status"),
    [
        ('prometheus_config { enable: true path: "/metrics" }', 200),
        ('prometheus_config { enable: false path: "/metrics" }', 404),
    ],
)
def test_the_monitoring_config_says_where_metrics_are(serve, tmp_path, text, status):
    (tmp_path / "monitoring.config").write_text(text)
    server = serve(monitoring_config_file=tmp_path / "monitoring.config")
    for path, expected in (("/metrics", status), ("/monitoring/prometheus/metrics", 404)):
        answer = requests.get(f"http://127.0.0.1:{server.rest_port}{path}", timeout=30)
        assert answer.status_code == expected


def logged(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [json.loads(r.getMessage()) for r in caplog.records if r.name == "towers.requests"]


@pytest.mark.parametrize("with_text", [False, True])
def test_requests_are_logged_without_their_text_unless_asked(serve, caplog, with_text):
    caplog.set_level("INFO")
    server = serve(log_requests=True, log_query_text=with_text)
    secret = "présent for my wife"
    requests.post(url(server), json={"instances": [secret]}, timeout=30).raise_for_status()
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        stub.Predict(predict_request("", query=["for my husband"]), timeout=30)
    rest, over_grpc = logged(caplog)[:2]
    assert (rest["model"], rest["api"], rest["status"]) == ("shop", "Predict", "OK")
    assert (rest["entrypoint"], over_grpc["entrypoint"]) == ("REST", "GRPC")
    assert rest["client"] == over_grpc["client"] == "127.0.0.1"
    assert 0 < rest["milliseconds"] < 30_000
    if with_text:
        assert "for my wife" in rest["text"]
        assert "for my husband" in over_grpc["text"]
    else:
        assert "my" not in caplog.text


def test_nothing_is_logged_of_requests_by_default(serve, caplog):
    caplog.set_level("INFO")
    post(serve()).raise_for_status()
    assert logged(caplog) == []
