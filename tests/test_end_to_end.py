"""The user's path through the command line and a real server, on the sample shop."""

from __future__ import annotations

import json
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from serving.loading import load_export
from towers import Retriever
from towers.cli.lexical import lexical_scorer
from towers.encoding import fast_dtype
from training.catalog import Catalog
from training.train import render_items

SHOP = Path(__file__).parent.parent / "examples" / "shop"
NAME = "sample-shop"


@pytest.fixture(scope="module")
def shop(
    tmp_path_factory: pytest.TempPathFactory,
    tiny_preset: str,
    towers_process: Callable[..., Any],
) -> dict[str, Any]:
    """A tiny encoder trained on the sample shop, exported as the command line does by itself."""
    base = tmp_path_factory.mktemp("shop")
    config = base / "config.toml"
    config.write_text("[encoder]\nquery_max_length = 24\nitem_max_length = 48\n")
    data = ("--catalog", SHOP / "catalog.csv", "--interactions")
    train = towers_process(
        *("train", *data, SHOP / "train.csv", "--output", base / "run", "--encoder", tiny_preset),
        *("--config", config, "--method", "full", "--epochs", 1),
        *("--learning-rate", 1e-3, "--shots", 64, "--json"),
    ).json
    export = towers_process(
        *("export", "--model", base / "run", "--catalog", SHOP / "catalog.csv"),
        *("--output", base / "saved_models" / NAME, "--json"),
    ).json
    return {"base": base, "train": train, "export": export, "data": data, "encoder": tiny_preset}


@pytest.fixture(scope="module")
def server(shop: dict[str, Any], start_server: Callable[..., Any]) -> Iterator[Any]:
    """`towers serve` on free ports."""
    server = start_server(shop["base"] / "saved_models" / NAME)
    yield server
    server.process.terminate()
    assert server.process.wait(timeout=60) == 0


def test_training_reports_what_it_did(shop: dict[str, Any]) -> None:
    assert shop["train"]["shots"] == 64
    assert shop["train"]["fit"]["trained_parameters"] > 10_000
    run = shop["base"] / "run"
    assert len((run / "shots.csv").read_text().splitlines()) == 65
    assert json.loads((run / "config.json").read_text())["shots"] == 64


def test_evaluation_covers_the_whole_catalogue(
    shop: dict[str, Any], tmp_path: Path, towers: Callable[..., Any]
) -> None:
    run_file = tmp_path / "shop.trec"
    result = towers(
        *("evaluate", "--model", shop["base"] / "run", *shop["data"], SHOP / "test.csv"),
        *("--run-file", run_file, "--depth", 20, "--measures", "nDCG@10,R@20", "--json"),
    ).json
    assert result["queries"] == 115
    assert 0 <= result["measures"]["nDCG@10"]["mean"] <= 1
    ranked = {line.split()[2] for line in run_file.read_text().splitlines()}
    judged = {line.split(",")[-2] for line in (SHOP / "test.csv").read_text().splitlines()[1:]}
    assert ranked - judged  # items nobody judged compete too


def test_all_ways_to_ask_give_the_same_answer(
    shop: dict[str, Any], server: Any, golden_texts: list[str]
) -> None:
    catalog = Catalog.read(SHOP / "catalog.csv")
    retriever = Retriever.load(shop["base"] / "run" / "model")
    texts = render_items(retriever.template, catalog)
    items = retriever.encode_items(texts, dtype=fast_dtype())  # as --precision auto
    cosine = retriever.encode_queries(golden_texts) @ items.T
    words = lexical_scorer(retriever.template, catalog)(golden_texts)
    weight = shop["train"]["lexical"]["weight"]  # what training chose by itself
    assert shop["export"]["lexical_weight"] == weight > 0
    scores = (1 - weight) * cosine + weight * words
    best = -np.sort(-scores, axis=1)[:, :10]
    row_of = {item: row for row, item in enumerate(catalog.item_ids)}

    def check(item_ids: np.ndarray, found: np.ndarray) -> None:
        assert item_ids.shape == found.shape == best.shape
        np.testing.assert_allclose(found, best, atol=1e-4)
        rows = np.vectorize(row_of.__getitem__)(item_ids)
        np.testing.assert_allclose(np.take_along_axis(scores, rows, axis=1), found, atol=1e-4)
        assert all(len(set(row)) == len(row) for row in item_ids)

    def decoded(ids: np.ndarray) -> np.ndarray:
        return np.array([[item.decode() for item in row] for row in ids])

    reloaded = load_export(shop["export"]["path"]).signatures["serving_default"]
    answer = reloaded(query=tf.constant(golden_texts))
    check(decoded(answer["item_ids"].numpy()), answer["scores"].numpy())
    saved_ids = decoded(answer["item_ids"].numpy())

    request = predict_pb2.PredictRequest()
    request.model_spec.name = NAME
    request.inputs["query"].CopyFrom(tf.make_tensor_proto(golden_texts))
    with grpc.insecure_channel(server.grpc) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        outputs = stub.Predict(request, timeout=60).outputs
    ids = decoded(tf.make_ndarray(outputs["item_ids"]))
    check(ids, tf.make_ndarray(outputs["scores"]))
    np.testing.assert_array_equal(ids, saved_ids)

    body = json.dumps({"inputs": {"query": golden_texts}}).encode()
    url = f"{server.rest}/v1/models/{NAME}:predict"
    with urllib.request.urlopen(urllib.request.Request(url, body), timeout=60) as response:
        outputs = json.load(response)["outputs"]
    check(np.array(outputs["item_ids"]), np.array(outputs["scores"]))
    np.testing.assert_array_equal(outputs["item_ids"], saved_ids)


def test_the_query_verb_asks_over_both_transports(
    server: Any, towers_process: Callable[..., Any], towers: Callable[..., Any]
) -> None:
    catalog = SHOP / "catalog.csv"
    ask = ("query", "kettle", "--model", NAME, "--k", 3, "--catalog", catalog, "--json")
    over_grpc = towers_process(*ask, "--server", server.grpc).json
    over_rest = towers(*ask, "--rest", "--server", server.rest).json
    assert len(over_grpc["items"]) == len(over_rest["items"]) == 3
    for one, other in zip(over_grpc["items"], over_rest["items"], strict=True):
        assert one == {**other, "score": pytest.approx(other["score"], abs=1e-6)}
    assert all(item["title"] for item in over_grpc["items"])


def test_the_query_verb_says_why(
    shop: dict[str, Any], server: Any, towers: Callable[..., Any]
) -> None:
    ask = ("query", "steel kettle", "--model", NAME, "--k", 3, "--server", server.grpc, "--json")
    why = ("--catalog", SHOP / "catalog.csv", "--explain", shop["base"] / "run")
    answer = towers(*ask, *why).json
    assert len(answer["items"]) == 3
    for item in answer["items"]:
        why = item["why"]
        words = [one["word"] for one in why["query"]]
        assert words == ["[CLS]", "steel", "kettle", "[SEP]"]
        assert words[0] == why["item"][0]["word"]
        for side in ("query", "item"):
            total = sum(one["share"] for one in why[side])
            assert total == pytest.approx(why["cosine"], abs=1e-5)
        # Of BM25 divided by the query's best, from 0 to 1; served items may be encoded in bfloat16.
        assert -1e-3 <= why["lexical"] <= why["lexical_weight"] + 1e-3


def test_a_new_export_is_served_without_a_restart(
    shop: dict[str, Any], server: Any, tmp_path: Path, towers: Callable[..., Any]
) -> None:
    lines = (SHOP / "catalog.csv").read_text().splitlines()
    smaller = tmp_path / "catalog.csv"
    smaller.write_text("\n".join(lines[:4]) + "\n")
    run = tmp_path / "run"
    trained = towers(
        *("train", *shop["data"], SHOP / "train.csv", "--output", run, "--method", "zero-shot"),
        *("--encoder", shop["encoder"], "--config", shop["base"] / "config.toml"),
        *("--lexical", "auto", "--json"),
    ).json
    export = towers(
        *("export", "--model", run, "--catalog", smaller),
        *("--output", shop["base"] / "saved_models" / NAME, "--json"),
    ).json
    assert export["version"] == shop["export"]["version"] + 1
    assert export["lexical_weight"] == trained["lexical"]["weight"] > 0
    ask = ("--model", NAME, "--server", server.grpc)
    deadline = time.monotonic() + 300
    while len(towers("query", "x", *ask, "--json").json["items"]) != 3:
        assert time.monotonic() < deadline, "the new version was not picked up"
        time.sleep(0.5)

    # What is served is what was evaluated.
    judged = tmp_path / "judged.csv"
    first = lines[1].split(",")[0]
    judged.write_text(f"query,item_id\nspringform tin,{first}\n")
    run_file = tmp_path / "hybrid.trec"
    evaluation = towers(
        *("evaluate", "--model", run, "--catalog", smaller, "--interactions", judged),
        *("--run-file", run_file),
    )
    assert evaluation.status == 0, evaluation.err
    answer = towers("query", "springform tin", *ask, "--json").json
    evaluated = [line.split() for line in run_file.read_text().splitlines()]
    assert [item["item_id"] for item in answer["items"]] == [line[2] for line in evaluated]
    scores = [float(line[4]) for line in evaluated]
    np.testing.assert_allclose([item["score"] for item in answer["items"]], scores, atol=1e-3)

    # A run whose towers are not those of the server cannot say why.
    of_others = ("--catalog", smaller, "--explain", shop["base"] / "run")
    refused = towers("query", "x", *ask, *of_others)
    assert refused.status == 2
    assert "is not the run that the server's model was exported from" in refused.err
