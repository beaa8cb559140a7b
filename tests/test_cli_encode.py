"""`towers encode`: a pipeline of Apache Beam on its embedded runner, with real exports and files.

The in-process encoder says what the vectors are; pyarrow's and TensorFlow's readers read them back.
"""

from __future__ import annotations

import gzip
import json
import os
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tensorflow as tf

from serving.export import export_retriever
from towers import Retriever

pytest.importorskip("apache_beam", reason="the extra `beam` is not installed")

WORDS = ("copper", "kettle", "garden", "rake", "coffee", "filter", "mug", "cat", "post", "cake")


@pytest.fixture(scope="module")
def export(
    tiny_retriever: Retriever,
    tiny_catalog: dict[str, list[str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    base = tmp_path_factory.mktemp("models") / "shop"
    texts = tiny_retriever.template.render(tiny_catalog)
    export_retriever(tiny_retriever, tiny_catalog["item_id"], texts, base)
    return base


def items(count: int) -> list[dict[str, str]]:
    """Items with texts of many lengths, no two the same."""
    rng = np.random.default_rng(0)
    return [
        {
            "item_id": f"item é{number}",
            "title": " ".join(rng.choice(WORDS, 1 + number % 17)) + f" {number}",
            "brand": "Harrow" if number % 3 else "",
            "description": "",
        }
        for number in range(count)
    ]


def write_jsonl(path: Path, records: list[dict[str, str]]) -> Path:
    path.write_text("".join(json.dumps(record) + "\n" for record in records), "utf-8")
    return path


def read_parquet(folder: Path) -> dict[str, np.ndarray]:
    """Vectors by id, of all shards."""
    table = pa.concat_tables(
        [pq.read_table(path) for path in sorted(folder.glob("part-*.parquet"))]
    )
    return dict(
        zip(table["item_id"].to_pylist(), np.array(table["vector"].to_pylist()), strict=True)
    )


def expected(retriever: Retriever, records: list[dict[str, str]]) -> dict[str, np.ndarray]:
    columns = {name: [record[name] for record in records] for name in records[0]}
    vectors = retriever.encode_items(retriever.template.render(columns))
    return dict(zip(columns["item_id"], vectors, strict=True))


def assert_same(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    ids = list(wanted)
    np.testing.assert_allclose(
        np.stack([found[x] for x in ids]), np.stack([wanted[x] for x in ids]), atol=1e-5
    )


def rejected(folder: Path) -> list[dict[str, Any]]:
    lines = (folder / "rejected.jsonl").read_text("utf-8").splitlines()
    return sorted(map(json.loads, lines), key=lambda record: (record["file"], record["row"]))


def test_vectors_are_those_of_the_encoder(
    export: Path, tmp_path: Path, tiny_retriever: Retriever, towers: Callable[..., Any]
) -> None:
    records = items(700)
    catalog = write_jsonl(tmp_path / "items.jsonl", records)
    output = tmp_path / "vectors"
    answer = towers(
        "encode",
        "--model",
        export,
        "--catalog",
        catalog,
        "--output",
        output,
        "--shards",
        3,
        "--json",
    )
    assert answer.status == 0, answer.err
    facts = json.loads(answer.out)
    assert (facts["items"], facts["rejected"], facts["encoded_shards"]) == (700, 0, 3)
    assert_same(read_parquet(output), expected(tiny_retriever, records))
    for shard in range(3):
        table = pq.read_table(output / f"part-{shard:05}-of-00003.parquet")
        assert table.schema.field("vector").type == pa.list_(pa.float32(), 32)
        assert table.schema.field("item_id").type == pa.string()
        wanted = [r["item_id"] for r in records if zlib.crc32(r["item_id"].encode()) % 3 == shard]
        assert table["item_id"].to_pylist() == wanted  # in the order of the catalogue
    manifest = json.loads((output / "manifest.json").read_text("utf-8"))
    assert manifest["complete"]
    assert manifest["encoder_fingerprint"] == tiny_retriever.fingerprint()
    names = {path.name for path in output.iterdir()}
    parts = {f"part-{shard:05}-of-00003.parquet" for shard in range(3)}
    assert names == parts | {"manifest.json", "rejected.jsonl", "finished"}


def test_bad_rows_are_set_aside_in_every_format(
    export: Path, tmp_path: Path, tiny_retriever: Retriever, towers: Callable[..., Any]
) -> None:
    header = b"item_id,title,brand,description\n"
    (tmp_path / "a.csv").write_bytes(
        header + b'k1,"Copper\nkettle",Harrow,\n,No id,,\nk2,Caf\xe9,,\nk3,Rake\nk4,Garden rake,,"'
    )
    lines = [b'{"item_id": 7, "title": "Cat"}', b'{"item_id": "k1", "title": "Again"}']
    lines += [b"[1]", b'{"item_id": "k5"', b"", b'{"item_id": "k6", "title": ["x"], "brand": null}']
    lines += [b'{"item_id": "k7", "title": " "}', b'{"item_id": "k8", "description": "Caf\xe9"}']
    with gzip.open(tmp_path / "b.jsonl.gz", "wb") as file:
        file.write(
            b"\n".join([*lines, b'{"item_id":"k9","title":"Mug","brand":"","description":""}'])
        )
    columns = {"item_id": ["p1", "p2", None], "title": ["Post", None, "Cake"]}
    columns |= {"brand": [None, "Harrow", None], "description": [None] * 3}
    table = pa.table({name: pa.array(values, pa.string()) for name, values in columns.items()})
    pq.write_table(table, tmp_path / "c.parquet")
    output = tmp_path / "vectors"
    answer = towers(
        *("encode", "--model", export, "--catalog", tmp_path / "?.*", "--output", output),
        *("--shards", 2),
    )
    assert answer.status == 0, answer.err
    assert answer.out.startswith("5 items in 2 shards: ")
    assert f"11 rows rejected: {output}/rejected.jsonl" in answer.out
    good = {"k1": ("Copper kettle", "Harrow"), "7": ("Cat", ""), "k6": ("x", "")}
    good |= {"k9": ("Mug", ""), "p1": ("Post", "")}
    records = [
        {"item_id": item_id, "title": title, "brand": brand, "description": ""}
        for item_id, (title, brand) in good.items()
    ]
    assert_same(read_parquet(output), expected(tiny_retriever, records))
    places = [(Path(bad["file"]).name, bad["row"], bad.get("line")) for bad in rejected(output)]
    csv_rows = [("a.csv", 2, 4), ("a.csv", 3, 5), ("a.csv", 4, 6), ("a.csv", 5, 7)]
    json_rows = [(2, 2), (3, 3), (4, 4), (6, 7), (7, 8)]
    assert places == [
        *csv_rows,
        *(("b.jsonl.gz", row, line) for row, line in json_rows),
        ("c.parquet", 2, None),
        ("c.parquet", 3, None),
    ]
    reasons = [bad["reason"] for bad in rejected(output)]
    for reason, part in zip(
        reasons,
        [
            "column 'item_id' is empty",
            "not UTF-8",
            "expected 4 columns, found 2",
            "a quotation mark opened in this row is never closed",
            f"item_id 'k1' is already in {tmp_path / 'a.csv'}, line 2",
            "expected one JSON object a line, found list",
            "not valid JSON",
            "column 'title' is empty",
            "not UTF-8",
            "column 'title' is empty",
            "column 'item_id' is empty",
        ],
        strict=True,
    ):
        assert part in reason


def test_tfrecord_of_a_catalogue_with_other_names_for_its_columns(
    export: Path, tmp_path: Path, tiny_retriever: Retriever, towers: Callable[..., Any]
) -> None:
    records = items(50)
    own = [{"sku" if name == "item_id" else name: x for name, x in r.items()} for r in records]
    catalog = f"{write_jsonl(tmp_path / 'items.jsonl', own)}:item_id=sku"
    output = tmp_path / "vectors"
    options = ("--output", output, "--format", "tfrecord", "--shards", 2)
    assert towers("encode", "--model", export / "1", "--catalog", catalog, *options).status == 0
    spec = {
        "item_id": tf.io.FixedLenFeature([], tf.string),
        "vector": tf.io.FixedLenFeature([32], tf.float32),
    }
    paths = sorted(map(str, output.glob("part-*-of-00002.tfrecord")))
    read = tf.data.TFRecordDataset(paths).map(lambda x: tf.io.parse_single_example(x, spec))
    found = {x["item_id"].decode(): x["vector"] for x in read.as_numpy_iterator()}
    assert_same(found, expected(tiny_retriever, records))


def test_only_shards_with_changed_items_are_encoded_again(
    export: Path, tmp_path: Path, tiny_retriever: Retriever, towers: Callable[..., Any]
) -> None:
    records = items(60)
    catalog = write_jsonl(tmp_path / "items.jsonl", records)
    output = tmp_path / "vectors"
    command = ("encode", "--model", export, "--catalog", catalog, "--output", output, "--shards", 4)
    assert "4 shards encoded, 0 were finished" in towers(*command).out
    written = {path: path.stat().st_mtime_ns for path in output.glob("part-*")}
    assert "0 shards encoded, 4 were finished" in towers(*command).out

    records[10]["title"] = "Another title"
    write_jsonl(catalog, records)
    assert "1 shards encoded, 3 were finished" in towers(*command).out
    changed = zlib.crc32(records[10]["item_id"].encode()) % 4
    again = {path.name for path, when in written.items() if path.stat().st_mtime_ns != when}
    assert again == {f"part-{changed:05}-of-00004.parquet"}
    assert_same(read_parquet(output), expected(tiny_retriever, records))

    damaged = output / "part-00002-of-00004.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert "1 shards encoded, 3 were finished" in towers(*command).out
    assert_same(read_parquet(output), expected(tiny_retriever, records))


def test_a_killed_run_goes_on(
    export: Path, tmp_path: Path, tiny_retriever: Retriever, towers: Callable[..., Any]
) -> None:
    records = items(4000)
    catalog = write_jsonl(tmp_path / "items.jsonl", records)
    output = tmp_path / "vectors"
    command = ["encode", "--model", export, "--catalog", catalog, "--output", output]
    command += ["--shards", "20"]
    words = [sys.executable, "-m", "towers", *map(str, command)]
    killed = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    finished = output / "finished"
    while len(list(finished.glob("*.json"))) < 2:
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.005)
    os.kill(killed.pid, signal.SIGKILL)
    killed.communicate()
    assert not json.loads((output / "manifest.json").read_text("utf-8"))["complete"]
    before = {path.stem: path for path in finished.glob("part-*.json")}
    parts = {stem: (output / f"{stem}.parquet").stat().st_mtime_ns for stem in before}
    assert 2 <= len(parts) < 20

    answer = towers(*command, "--json")
    assert json.loads(answer.out)["encoded_shards"] == 20 - len(parts)
    after = {stem: (output / f"{stem}.parquet").stat().st_mtime_ns for stem in before}
    assert after == parts
    assert_same(read_parquet(output), expected(tiny_retriever, records))
    assert not [*output.glob(".work-*"), *output.glob("beam-temp*"), *output.glob("**/.*.tmp")]


def test_a_run_is_encoded_and_exported_from_its_vectors(
    tmp_path: Path,
    tiny_retriever: Retriever,
    tiny_preset: str,
    towers: Callable[..., Any],
) -> None:
    records = items(40)
    catalog = write_jsonl(tmp_path / "items.jsonl", records)
    config = tmp_path / "config.toml"
    template = tiny_retriever.text.item_template
    config.write_text(
        f'[encoder]\npreset = "{tiny_preset}"\nitem_template = "{template}"\n'
        "query_max_length = 16\nitem_max_length = 48\n"
    )
    run, output = tmp_path / "run", tmp_path / "vectors"
    answer = towers("train", "--catalog", catalog, "--output", run, "--config", config)
    assert answer.status == 0, answer.err
    encode = ("encode", "--model", run, "--catalog", catalog, "--output", output, "--shards", 3)
    answer = towers(*encode)
    assert answer.status == 0, answer.err
    assert_same(read_parquet(output), expected(tiny_retriever, records))

    export = ("export", "--model", run, "--catalog", catalog, "--vectors", output, "--k", 3)
    answer = towers(*export, "--output", tmp_path / "shop")
    assert answer.status == 0, answer.err
    kept = np.load(tmp_path / "shop" / "1" / "assets.extra" / "towers" / "item_embeddings.npy")
    wanted = expected(tiny_retriever, records)
    np.testing.assert_allclose(kept, np.stack(list(wanted.values())), atol=1e-5)

    changed = write_jsonl(tmp_path / "changed.jsonl", [*records, {**records[0], "item_id": "new"}])
    answer = towers(
        *("export", "--model", run, "--catalog", changed, "--vectors", output),
        *("--output", tmp_path / "other"),
    )
    assert answer.status == 2
    assert "are not of this catalogue" in answer.err
    (output / "part-00001-of-00003.parquet").write_bytes(b"PAR1")
    answer = towers(*export, "--output", tmp_path / "other")
    assert answer.status == 2
    assert "part-00001-of-00003.parquet cannot be read" in answer.err
    assert not (tmp_path / "other").exists()


def test_what_is_refused(export: Path, tmp_path: Path, towers: Callable[..., Any]) -> None:
    catalog = write_jsonl(tmp_path / "items.jsonl", items(3))
    output = tmp_path / "vectors"
    encode = ("encode", "--model", export, "--catalog")

    def refused(*arguments: object) -> str:
        answer = towers(*encode, *arguments)
        assert answer.status == 2, answer
        assert answer.out == ""
        return answer.err

    assert "there is no such file" in refused(tmp_path / "no.csv", "--output", output)
    assert "unknown file format" in refused(export / "1" / "manifest.json", "--output", output)
    wrong = tmp_path / "wrong.csv"
    wrong.write_text("item_id,name\nk1,Kettle\n")
    assert "no column 'title'" in refused(wrong, "--output", output)
    wrong.write_text("")
    assert "is empty" in refused(wrong, "--output", output)
    assert not output.exists()

    # Read to the end before it shows: no line has the template's columns.
    bare = write_jsonl(tmp_path / "bare.jsonl", [{"item_id": "k1", "title": "Kettle"}])
    assert "no column 'brand'" in refused(bare, "--output", output)
    cut = tmp_path / "cut.jsonl.gz"
    cut.write_bytes(gzip.compress(catalog.read_bytes())[:-10])
    assert "truncated" in refused(cut, "--output", output)
    assert not output.exists()

    assert towers(*encode, catalog, "--output", output, "--shards", 2).status == 0
    assert "in another number of shards" in refused(catalog, "--output", output, "--shards", 3)
    tfrecord = ("--format", "tfrecord", "--shards", 2)
    assert "in another format" in refused(catalog, "--output", output, *tfrecord)
    facts = json.loads((output / "manifest.json").read_text())
    facts["encoder_fingerprint"] = "0" * 64
    (output / "manifest.json").write_text(json.dumps(facts))
    assert "of another encoder" in refused(catalog, "--output", output, "--shards", 2)
    assert "holds other files" in refused(catalog, "--output", tmp_path)
    names = ("--catalog", f"{catalog}:title=brand")
    assert "the same names for their columns" in refused(catalog, *names, "--output", output)


def test_one_process_writes_a_folder(
    export: Path, tmp_path: Path, towers: Callable[..., Any]
) -> None:
    from serving.bulk.files import one_writer

    catalog = write_jsonl(tmp_path / "items.jsonl", items(3))
    output = tmp_path / "vectors"
    with one_writer(str(output)):
        answer = towers("encode", "--model", export, "--catalog", catalog, "--output", output)
    assert answer.status == 2
    assert "another process is writing" in answer.err


def test_workers_need_neither_keras_nor_training() -> None:
    code = (
        "import serving.bulk.pipeline, sys\n"
        "heavy = [name for name in sys.modules if name.startswith(('keras', 'training'))]\n"
        "print(heavy)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "[]\n", done.stderr
