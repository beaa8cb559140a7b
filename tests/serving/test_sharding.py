"""Sharded catalogues against one index over the same items."""

from __future__ import annotations

import shutil
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

from serving.client import RetrievalClient, ServingError
from serving.export import BuiltVersion, export_retriever
from serving.fan_out import ShardedClient
from serving.manifest import Manifest
from serving.server.model_watcher import LoadOptions
from serving.server.server import ModelServer
from serving.sharded_export import export_shards
from serving.sharded_update import update_shards
from serving.shards import find_shards, shard_of
from serving.stored_items import StoredItems
from serving.update import ChangedItems, update_items
from serving.verify import verify, verify_shards
from towers import InputError, Retriever

WEIGHT = 0.4
K = 7
QUERIES = ["electric kettle", "gardn rake", "red mug for coffee", "Crème brûlée", "zzz", "", "漢字"]
SAME = ["same1", "same2", "same3", "same4"]  # four items that no score tells apart
COLD = LoadOptions(poll_seconds=0.1, warm_up=False)
PATIENT = 120  # seconds, on a machine that does much else
Rows = dict[str, list[Any]]


@pytest.fixture(scope="module")
def rows(tiny_catalog: dict[str, list[str]]) -> Rows:
    """The tiny catalogue, some items of other words, and items that are the same but for the id."""
    rows: Rows = {name: list(values) for name, values in tiny_catalog.items()}
    nouns = ("kettle", "mug", "rake", "hose", "torch")
    for number in range(22):
        noun, adjective = nouns[number % 5], ("red", "electric", "garden")[number % 3]
        rows["item_id"].append(f"x{number}")
        rows["title"].append(f"{adjective.title()} {noun} {number % 4 or ''}".strip())
        rows["brand"].append(("Harrow", "", "Oakfield")[number % 3])
        rows["description"].append("Holds coffee." if number % 2 else "")
    for item_id in SAME:
        rows["item_id"].append(item_id)
        rows["title"].append("Red mug")
        rows["brand"].append("")
        rows["description"].append("Holds 350 ml.")
    rows["price"] = [None if n % 7 == 3 else 5.0 + n for n in range(len(rows["item_id"]))]
    return rows


def _export(
    retriever: Retriever,
    rows: Rows,
    base: Path,
    shards: int | None = None,
    weight: float = WEIGHT,
    **options: Any,
) -> Any:
    """One index over all items, or shards of them."""
    texts = retriever.template.render(rows)
    options |= {
        "k": K,
        "lexical_weight": weight,
        "lexical_fields": {name: rows[name] for name in ("title", "brand")} if weight else None,
        "columns": {"brand": rows["brand"], "price": rows["price"]},
        "item_embeddings": retriever.encode_items(texts),
    }
    if shards is None:
        return export_retriever(retriever, rows["item_id"], texts, base, **options)
    return export_shards(retriever, rows["item_id"], texts, base, shards=shards, **options)


def _assert_same(got: list[list[Any]], expected: list[list[Any]]) -> None:
    """The same items in the same order, scores to 1e-6, and whatever else hits tell."""
    assert [[hit.item_id for hit in hits] for hits in got] == [
        [hit.item_id for hit in hits] for hits in expected
    ]
    for found, wanted in zip(got, expected, strict=True):
        np.testing.assert_allclose([x.score for x in found], [x.score for x in wanted], atol=1e-6)
        assert [x[2:] for x in found] == [x[2:] for x in wanted]


FILTERS: list[tuple[dict[str, Any], list[str]]] = [
    ({}, []),
    ({"brand": ["Harrow", "Oakfield"]}, []),
    ({"price": (10, 20)}, ["m2", "x7"]),
    ({"price": (None, 12.5), "brand": ["Harrow"]}, []),
    ({"price": (1000, None)}, []),
]


def _assert_as_one(
    client: ShardedClient,
    one: RetrievalClient,
    queries: list[str],
    filters: list[tuple[dict[str, Any], list[str]]],
) -> None:
    found = one.search(queries)
    _assert_same(client.search(queries), found)
    _assert_same(client.search(queries[:1], k=2), [found[0][:2]])
    for allowed, exclude in filters:
        wanted = one.search_filtered(queries, allowed, exclude)
        _assert_same(client.search_filtered(queries, allowed, exclude), wanted)
    asked = ["m2", "unknown", "", "same1", "x3"]
    _assert_same(client.similar(asked), one.similar(asked))
    np.testing.assert_allclose(
        client.encode_queries(queries), one.encode_queries(queries), atol=1e-6
    )


# In this process: the graph's own functions, eagerly, in the place of servers.


class InProcess:
    """A transport to the module of an export that was built and not written."""

    def __init__(self, module: tf.Module) -> None:
        self._functions = module.signatures

    def predict(self, signature: str, inputs: dict[str, Any], **_: Any) -> dict[str, np.ndarray]:
        function = self._functions[signature]
        tensors = [
            tf.reshape(
                tf.constant(inputs[spec.name], spec.dtype),
                [len(inputs[spec.name]), *([-1] if spec.shape.rank == 2 else [])],
            )
            for spec in function.input_signature
        ]
        assert len(inputs) >= len(tensors)
        outputs = function(*tensors)
        return {
            name: np.char.decode(x.numpy().astype(bytes)).astype(object)
            if x.dtype == tf.string
            else x.numpy()
            for name, x in outputs.items()
        }

    def signatures(self, **_: Any) -> dict[str, dict[str, str]]:
        return {
            name: {
                spec.name: "DT_STRING" if spec.dtype == tf.string else "DT_FLOAT"
                for spec in function.input_signature
            }
            for name, function in self._functions.items()
        }

    def close(self) -> None:
        pass


@pytest.fixture(scope="module")
def kept() -> dict[str, list[tf.Module]]:
    """Modules of exports by what they hold, for all tests."""
    return {}


@pytest.fixture
def clients(
    monkeypatch: pytest.MonkeyPatch,
    tiny_retriever: Retriever,
    tmp_path: Path,
    kept: dict[str, list[tf.Module]],
) -> Iterator[Callable[..., tuple[ShardedClient, RetrievalClient]]]:
    """Returns a function that gives a client of shards and one of a single index over all items."""
    built: list[tf.Module] = []

    def keep(version: BuiltVersion, folder: Path, model_name: str, **_: Any) -> Manifest:
        built.append(version.module)
        return version.manifest

    def transport(address: str, model: str, *_: Any) -> InProcess:
        name, number = address.split("/")
        return InProcess(kept[name][int(number)])

    monkeypatch.setattr(BuiltVersion, "write", keep)
    monkeypatch.setattr("serving.fan_out.make_transport", transport)
    monkeypatch.setattr("serving.client.make_transport", transport)

    def make(rows: Rows, count: int, weight: float) -> tuple[ShardedClient, RetrievalClient]:
        whole = f"{len(rows['item_id'])} items of weight {weight}"
        parts = f"{whole} in {count} shards"
        if whole not in kept:
            built.clear()
            _export(tiny_retriever, rows, tmp_path / "whole", weight=weight)
            kept[whole] = list(built)
        if parts not in kept:
            built.clear()
            published = _export(tiny_retriever, rows, tmp_path / "shop", count, weight)
            counts = Counter(shard_of(item_id, count) for item_id in rows["item_id"])
            assert [x.item_count for x in published.manifests] == [counts[n] for n in range(count)]
            kept[parts] = list(built)
        shards = [f"{parts}/{number}" for number in range(count)]
        return ShardedClient(shards, model="shop"), RetrievalClient(f"{whole}/0", model="whole")

    tf.config.run_functions_eagerly(True)
    yield make
    tf.config.run_functions_eagerly(False)


@pytest.mark.parametrize(
    ("count", "weight"), [(1, WEIGHT), (3, WEIGHT), (5, WEIGHT), (3, 0.0), (5, 1.0)]
)
def test_shards_answer_as_one_index(
    count: int, weight: float, rows: Rows, clients: Callable[..., Any]
) -> None:
    sharded, one = clients(rows, count, weight)
    _assert_as_one(sharded, one, QUERIES[1:4], FILTERS[3:4])


@pytest.mark.parametrize("weight", [0.0, WEIGHT])
def test_shards_without_any_item(weight: float, rows: Rows, clients: Callable[..., Any]) -> None:
    few = {name: values[:3] for name, values in rows.items()}
    assert len({shard_of(item_id, 5) for item_id in few["item_id"]}) < 4
    sharded, one = clients(few, 5, weight)
    _assert_as_one(sharded, one, QUERIES[2:3], FILTERS[3:4])
    assert len(sharded.search(["mug"])[0]) == 3


def test_equal_scores_come_in_the_order_of_the_catalogue(
    rows: Rows, clients: Callable[..., Any]
) -> None:
    shards = [shard_of(item_id, 5) for item_id in SAME]
    assert sorted(shards) != shards  # the order of shards is another one
    sharded, _ = clients(rows, 5, WEIGHT)
    (hits,) = sharded.search(["red mug holds 350 ml."])
    found = [hit for hit in hits if hit.item_id in SAME]
    assert [hit.item_id for hit in found] == SAME
    assert len({round(hit.score, 6) for hit in found}) == 1


# Through servers.


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory, tiny_retriever: Retriever, rows: Rows) -> Path:
    """A folder with one index, `whole`, and two shards, `shop`, which hold the same items."""
    folder = tmp_path_factory.mktemp("models")
    _export(tiny_retriever, rows, folder / "whole")
    _export(tiny_retriever, rows, folder / "shop", 2)
    return folder


@pytest.fixture(scope="module")
def one(models: Path) -> Iterator[RetrievalClient]:
    with (
        ModelServer(models / "whole", loading=COLD) as server,
        RetrievalClient(f"127.0.0.1:{server.grpc_port}", model="whole", timeout=PATIENT) as client,
    ):
        yield client


@pytest.fixture(scope="module")
def both(models: Path) -> Iterator[ModelServer]:
    """One server of both shards, by the file that the export wrote."""
    with ModelServer(model_config_file=models / "shop" / "models.config", loading=COLD) as server:
        yield server


@pytest.fixture(scope="module")
def apart(models: Path) -> Iterator[list[ModelServer]]:
    """A server for each shard."""
    shards = find_shards(models / "shop")
    assert shards is not None
    servers = [ModelServer(path.parent, loading=COLD) for path in shards.paths]
    with servers[0], servers[1]:
        with ShardedClient(_grpc(*servers), model="shop", timeout=PATIENT) as client:
            client.search(QUERIES)  # the first search of a signature takes long
        yield servers


def _grpc(*servers: ModelServer) -> list[str]:
    return [f"127.0.0.1:{server.grpc_port}" for server in servers]


@pytest.mark.parametrize("transport", ["grpc", "rest"])
def test_one_server_of_all_shards(
    transport: str, both: ModelServer, one: RetrievalClient, models: Path
) -> None:
    port = both.grpc_port if transport == "grpc" else both.rest_port
    with ShardedClient(
        [f"127.0.0.1:{port}"] * 2, model="shop", transport=transport, timeout=PATIENT
    ) as client:
        _assert_as_one(client, one, QUERIES, FILTERS)
        assert client.search([]) == client.similar([]) == client.search_filtered([]) == []
        assert client.search(["mug"]).missing == []
        states = {name: [x.state for x in versions] for name, versions in client.status().items()}
    names = ["shop-00000-of-00002", "shop-00001-of-00002"]
    assert states == {name: ["AVAILABLE"] for name in names}


@pytest.mark.parametrize("transport", ["grpc", "rest"])
def test_filters_allow_what_they_say(transport: str, both: ModelServer, rows: Rows) -> None:
    port = both.grpc_port if transport == "grpc" else both.rest_port
    kept = dict(zip(rows["item_id"], zip(rows["brand"], rows["price"], strict=True), strict=True))
    ours = {x: kept[x] for x in kept if shard_of(x, 2) == 0}
    allowed = [
        set(ours),
        {x for x, (brand, _) in ours.items() if brand in ("Harrow", "Oakfield")},
        {x for x, (_, price) in ours.items() if price and 10 <= price <= 20} - {"m2", "x7"},
        {x for x, (brand, price) in ours.items() if price and price <= 12.5 and brand == "Harrow"},
        set(),
    ]
    name = "shop-00000-of-00002"
    with RetrievalClient(
        f"127.0.0.1:{port}", model=name, transport=transport, timeout=PATIENT
    ) as client:
        for (filters, exclude), wanted in zip(FILTERS, allowed, strict=True):
            for hits in client.search_filtered(["mug", "rake"], filters, exclude):
                assert len(hits) == min(K, len(wanted))
                assert {hit.item_id for hit in hits} <= wanted
                for hit in hits:
                    brand, price = kept[hit.item_id]
                    assert hit.columns == {"brand": brand, "price": price or 0}
        assert len(client.search_filtered(["mug"], k=2)[0]) == 2


def test_a_server_for_each_shard(apart: list[ModelServer], one: RetrievalClient) -> None:
    with ShardedClient(_grpc(*apart), model="shop", timeout=PATIENT) as client:
        _assert_as_one(client, one, QUERIES, FILTERS)
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(client.search, [[query] for query in QUERIES * 4]))
    expected = [one.search([query])[0] for query in QUERIES]
    # Each server batches what comes at the same time, and without AVX-512 a product of another
    # number of queries is rounded otherwise: items that no score tells apart may change places.
    for (found,), wanted in zip(answers, expected * 4, strict=True):
        scores = np.array([hit.score for hit in wanted])
        np.testing.assert_allclose([hit.score for hit in found], scores, atol=1e-6)
        alone = (np.abs(scores[:, None] - scores) < 1e-5).sum(axis=1) == 1
        alone[-1] = False  # it may have equals that were cut off
        for place in np.flatnonzero(alone):
            assert found[place].item_id == wanted[place].item_id


@pytest.fixture
def nobody() -> Iterator[str]:
    """An address where no server answers."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def silent() -> Iterator[str]:
    """An address that connects, and never says anything."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield f"127.0.0.1:{listening.getsockname()[1]}"


def test_a_shard_that_is_down_is_an_error(apart: list[ModelServer], nobody: str) -> None:
    with ShardedClient([*_grpc(apart[0]), nobody], model="shop", timeout=PATIENT) as client:
        for ask in (client.search, client.search_filtered, client.similar):
            with pytest.raises(ServingError, match=f"shop-00001-of-00002 at {nobody}") as raised:
                ask(["mug"])
            assert raised.value.code == "UNAVAILABLE"


@pytest.mark.parametrize(("down", "timeout"), [("nobody", PATIENT), ("silent", 10)])
def test_or_a_partial_answer(
    down: str,
    timeout: float,
    apart: list[ModelServer],
    rows: Rows,
    request: pytest.FixtureRequest,
) -> None:
    address = request.getfixturevalue(down)
    servers = [*_grpc(apart[0]), address]
    with ShardedClient(servers, model="shop", timeout=timeout, partial=True) as client:
        for _ in range(2):
            answers = client.search(QUERIES)
            assert answers.missing == ["shop-00001-of-00002"]
            found = {hit.item_id for hits in answers for hit in hits}
            assert found <= {x for x in rows["item_id"] if shard_of(x, 2) == 0}
            assert [len(hits) for hits in answers] == [K] * len(QUERIES)
    with (
        ShardedClient([address, address], model="shop", timeout=1, partial=True) as client,
        pytest.raises(ServingError),
    ):
        client.search(["mug"])


def test_another_server_of_a_shard_takes_over(
    apart: list[ModelServer], both: ModelServer, one: RetrievalClient, nobody: str, silent: str
) -> None:
    first, second = _grpc(*apart)
    shards = [[nobody, first, *_grpc(both)], [silent, second]]
    expected = one.search(QUERIES)
    with ShardedClient(shards, model="shop", timeout=16) as client:
        for _ in range(4):
            _assert_same(client.search(QUERIES), expected)


def test_a_refusal_is_not_tried_elsewhere(apart: list[ModelServer]) -> None:
    with ShardedClient(_grpc(*apart), model="shop", timeout=PATIENT, partial=True) as client:
        with pytest.raises(InputError, match=r"no column 'colour'.*brand, price"):
            client.search_filtered(["mug"], {"colour": ["red"]})
        with pytest.raises(InputError, match="'price' holds numbers"):
            client.search_filtered(["mug"], {"price": ["red"]})
        with pytest.raises(InputError, match="'brand' holds texts"):
            client.search_filtered(["mug"], {"brand": (1, 2)})


def test_a_shard_under_the_name_of_another(apart: list[ModelServer], models: Path) -> None:
    shards = find_shards(models / "shop")
    assert shards is not None
    wrong = ModelServer(
        shards.paths[1].parent, model_name=shards.paths[0].parent.name, loading=COLD
    )
    with (
        wrong,
        ShardedClient(_grpc(wrong, apart[1]), model="shop", timeout=PATIENT) as client,
        pytest.raises(ServingError, match="serves shard 1 under the name shop-00000-of-00002"),
    ):
        client.search(["mug"])


# New versions.


@pytest.fixture(scope="module")
def updated(
    models: Path, tiny_retriever: Retriever, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The models with changed items, as version 2."""
    folder = Path(shutil.copytree(models, tmp_path_factory.mktemp("updated") / "models"))

    def changed(item_ids: list[str], titles: list[str]) -> ChangedItems:
        rows = {"title": titles, "brand": [""] * len(titles), "description": [""] * len(titles)}
        texts = tiny_retriever.template.render({"item_id": item_ids, **rows})
        fields = {name: rows[name] for name in ("title", "brand")}
        return ChangedItems(
            item_ids, texts, fields, {"brand": rows["brand"], "price": [3.0] * len(titles)}
        )

    changes: dict[str, Any] = {
        # "Red mug" again, after all others in the catalogue, and a word that was nowhere before.
        "add": changed(["n1", "n2"], ["Red mug", "Zinc kettle"]),
        "replace": changed(["x3", "m2"], ["Zinc bucket", "Red mug"]),
        "remove": ["x1", "g1", "x8"],
    }
    update_items(folder / "whole", **changes)
    shards = find_shards(folder / "shop")
    assert shards is not None
    result = update_shards(shards, **changes)
    assert (result.added, result.replaced, result.removed, result.encoded) == (2, 2, 3, 4)
    assert (result.shards.version, result.shards.item_count) == (2, 33)
    return folder


def test_changed_shards_answer_as_a_changed_index(updated: Path) -> None:
    with (
        ModelServer(updated / "whole", loading=COLD) as whole,
        ModelServer(model_config_file=updated / "shop" / "models.config", loading=COLD) as shards,
        RetrievalClient(*_grpc(whole), model="whole", timeout=PATIENT) as one,
        ShardedClient(_grpc(shards) * 2, model="shop", timeout=PATIENT) as client,
    ):
        _assert_as_one(client, one, [*QUERIES, "zinc", "Red mug"], FILTERS)
        states = {len(versions) for versions in client.status().values()}
    assert states == {2}  # the older one stays in service

    shards_now = find_shards(updated / "shop")
    assert shards_now is not None
    found = verify_shards(shards_now, sample=8)
    assert (found.problems, found.item_count, found.recall) == ([], 33, 1.0)
    with pytest.raises(InputError, match="one of 2 shards"):
        verify(shards_now.paths[0])
    with pytest.raises(InputError, match="one of 2 shards"):
        update_items(shards_now.paths[0].parent, remove=["k1"])
    for changes, message in [
        ({"remove": ["nobody"]}, "'nobody' is not in the export"),
        ({"remove": ["k1", "k1"]}, "named more than once"),
        ({}, "nothing to change"),
        (
            {"remove": [x for path in shards_now.paths for x in StoredItems.read(path).ids]},
            "no item",
        ),
    ]:
        with pytest.raises(InputError, match=message):
            update_shards(shards_now, **changes)


def test_shards_of_different_exports_are_not_merged(
    updated: Path, apart: list[ModelServer]
) -> None:
    # The first shard has version 2 alone in service, the second version 1.
    with (
        ModelServer(updated / "shop" / "shop-00000-of-00002", loading=COLD) as ahead,
        ShardedClient(
            _grpc(ahead, apart[1]), model="shop", timeout=PATIENT, partial=True
        ) as client,
    ):
        for ask in (client.search, client.search_filtered):
            with pytest.raises(ServingError, match="the shards are of different exports") as raised:
                ask(["mug"])
            assert raised.value.code == "FAILED_PRECONDITION"


@pytest.mark.parametrize("transport", ["grpc", "rest"])
def test_while_a_version_comes_in_the_older_one_answers(
    transport: str, updated: Path, apart: list[ModelServer], one: RetrievalClient
) -> None:
    config = updated / "shop" / "models.config"  # two versions of each
    with ModelServer(model_config_file=config, loading=COLD) as ahead:
        port = "grpc_port" if transport == "grpc" else "rest_port"
        servers = [f"127.0.0.1:{getattr(server, port)}" for server in (ahead, apart[1])]
        with ShardedClient(servers, model="shop", transport=transport, timeout=PATIENT) as client:
            for _ in range(2):
                _assert_same(client.search(QUERIES), one.search(QUERIES))
            _assert_same(
                client.search_filtered(QUERIES, {"brand": ["Harrow"]}),
                one.search_filtered(QUERIES, {"brand": ["Harrow"]}),
            )


def test_bad_arguments() -> None:
    for shards in ([], "localhost:8500", [["localhost:8500"], []], ["localhost"]):
        with pytest.raises(InputError):
            ShardedClient(shards, model="shop")
