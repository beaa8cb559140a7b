from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from towers.errors import InputError
from towers.retriever import Retriever, TextSettings
from towers.tokenizer import Tokenizer

Make = Callable[..., Retriever]


def test_save_and_load_give_the_same_vectors(
    tmp_path: Path, make_tiny_retriever: Make, golden_texts: list[str]
) -> None:
    text = TextSettings("{title}[ by {brand}]", 12, 24, query_prefix="red: ")
    retriever = make_tiny_retriever(text=text, projection_dim=8, learn_temperature=True)
    retriever.save(tmp_path / "model")
    again = Retriever.load(tmp_path / "model")
    assert again.text == text
    assert again.template == retriever.template
    assert again.model.shared
    assert again.fingerprint() == retriever.fingerprint()
    np.testing.assert_array_equal(
        again.encode_queries(golden_texts), retriever.encode_queries(golden_texts)
    )
    np.testing.assert_array_equal(
        again.encode_items(golden_texts), retriever.encode_items(golden_texts)
    )


def test_separate_towers_stay_separate(tmp_path: Path, make_tiny_retriever: Make) -> None:
    retriever = make_tiny_retriever(shared=False)
    retriever.model.query_tower.set_weights(
        [weight * 0.5 for weight in retriever.model.query_tower.get_weights()]
    )
    retriever.save(tmp_path / "model")
    again = Retriever.load(tmp_path / "model")
    assert not again.model.shared
    for tower in ("query_tower", "item_tower"):
        for a, b in zip(
            getattr(again.model, tower).get_weights(),
            getattr(retriever.model, tower).get_weights(),
            strict=True,
        ):
            np.testing.assert_array_equal(a, b)
    assert np.abs(again.encode_queries(["mug"]) - again.encode_items(["mug"])).max() > 0.01


def test_a_mixed_precision_model_is_saved_in_float32(
    tmp_path: Path, make_tiny_retriever: Make
) -> None:
    retriever = make_tiny_retriever(dtype="mixed_bfloat16")
    retriever.save(tmp_path / "model")
    again = Retriever.load(tmp_path / "model")
    assert again.model.query_tower.compute_dtype == "float32"
    exact = retriever.as_float32()
    np.testing.assert_array_equal(again.encode_items(["red mug"]), exact.encode_items(["red mug"]))


def test_saving_over_a_model(tmp_path: Path, make_tiny_retriever: Make) -> None:
    make_tiny_retriever(seed=1).save(tmp_path)
    other = make_tiny_retriever(seed=2)
    other.save(tmp_path)
    assert Retriever.load(tmp_path).fingerprint() == other.fingerprint()


def test_fingerprint_is_that_of_the_items_side(make_tiny_retriever: Make) -> None:
    base = make_tiny_retriever(shared=False)
    fingerprint = base.fingerprint()
    assert make_tiny_retriever(shared=False).fingerprint() == fingerprint

    # The query side does not count.
    first = base.model.query_tower.weights[0]
    first.assign(first + 1.0)
    assert base.fingerprint() == fingerprint
    queries = TextSettings("{title}[ by {brand}][. {description}]", 9, 48, query_prefix="q: ")
    assert make_tiny_retriever(shared=False, text=queries).fingerprint() == fingerprint

    # Each part of the items' side does.
    first = base.model.item_tower.weights[0]
    value = first.numpy()
    first.assign(np.nextafter(value, np.inf))
    changed = {base.fingerprint()}
    first.assign(value)
    assert base.fingerprint() == fingerprint
    for text in (TextSettings("{title}", 16, 48), TextSettings(base.text.item_template, 16, 47)):
        changed.add(Retriever(base.model, base.tokenizer, text).fingerprint())
    vocabulary = list(base.tokenizer.vocabulary)
    vocabulary[-2:] = reversed(vocabulary[-2:])
    changed.add(Retriever(base.model, Tokenizer(vocabulary), base.text).fingerprint())
    cased = Tokenizer(base.tokenizer.vocabulary, lowercase=False)
    changed.add(Retriever(base.model, cased, base.text).fingerprint())
    assert len(changed) == 5
    assert fingerprint not in changed


def test_the_prefix_is_put_before_queries(make_tiny_retriever: Make) -> None:
    plain = make_tiny_retriever(text=TextSettings("{title}", 12, 12))
    prefixed = make_tiny_retriever(text=TextSettings("{title}", 12, 12, query_prefix="red "))
    np.testing.assert_allclose(
        prefixed.encode_queries(["mug"]), plain.encode_queries(["red mug"]), atol=1e-6
    )
    np.testing.assert_allclose(
        prefixed.encode_items(["mug"]), plain.encode_items(["mug"]), atol=1e-6
    )


@pytest.mark.parametrize("encode", ["encode_queries", "encode_items", "encode_reviews"])
def test_only_lists_of_texts_are_encoded(encode: str, make_tiny_retriever: Make) -> None:
    retriever = make_tiny_retriever()
    with pytest.raises(InputError, match=r"got one string; pass \['flask'\]"):
        getattr(retriever, encode)("flask")
    with pytest.raises(InputError, match="text 1 is None"):
        getattr(retriever, encode)(["flask", None])


def test_encoding_follows_the_weights(make_tiny_retriever: Make) -> None:
    retriever = make_tiny_retriever()
    before = {dtype: retriever.encode_items(["mug"], dtype=dtype) for dtype in (None, "bfloat16")}
    other = make_tiny_retriever(seed=5)
    retriever.model.item_tower.set_weights(other.model.item_tower.get_weights())
    for dtype, vectors in before.items():
        after = retriever.encode_items(["mug"], dtype=dtype)
        assert np.abs(after - vectors).max() > 0.01
        np.testing.assert_allclose(after, other.encode_items(["mug"], dtype=dtype), atol=1e-6)


def test_lengths_beyond_the_encoders_positions(make_tiny_retriever: Make) -> None:
    with pytest.raises(InputError, match="item_max_length 65 is over the encoder's 64 positions"):
        make_tiny_retriever(text=TextSettings("{title}", 64, 65))
    with pytest.raises(InputError, match="query_max_length 99 is over"):
        make_tiny_retriever(text=TextSettings("{title}", 99, 64))


def test_settings_that_make_no_sense() -> None:
    with pytest.raises(InputError, match="query_max_length must be at least 3"):
        TextSettings("{title}", query_max_length=2)
    with pytest.raises(InputError, match="names no column"):
        TextSettings("title")


@pytest.mark.parametrize("name", ["towers.keras", "text.json", "tokenizer/vocab.txt"])
def test_a_folder_that_lacks_a_file(name: str, tmp_path: Path, saved_model: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved_model, folder)
    (folder / name).unlink()
    with pytest.raises(InputError, match=f"not a model folder: it holds no {name}"):
        Retriever.load(folder)


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a model folder"):
        Retriever.load(tmp_path / "nothing")


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("towers.keras", b"not a zip file"),
        ("text.json", b"{"),
        ("text.json", b"[]"),
        ("text.json", json.dumps({"item_template": "{title}", "colour": 3}).encode()),
        ("text.json", b"\xff\xfe"),
        ("tokenizer/vocab.txt", b"[PAD]\n\xff\n"),
        ("tokenizer/tokenizer_config.json", b"{"),
    ],
)
def test_a_damaged_file(name: str, content: bytes, tmp_path: Path, saved_model: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved_model, folder)
    (folder / name).write_bytes(content)
    with pytest.raises(InputError, match=r"is damaged|cannot be read|is not valid JSON"):
        Retriever.load(folder)


def test_a_truncated_model(tmp_path: Path, saved_model: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(saved_model, folder)
    whole = (folder / "towers.keras").read_bytes()
    (folder / "towers.keras").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError, match="is damaged"):
        Retriever.load(folder)


@pytest.fixture(scope="module")
def saved_model(tmp_path_factory: pytest.TempPathFactory, tiny_retriever: Retriever) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "model"
    tiny_retriever.save(folder)
    return folder


def test_known_items_are_looked_up_and_the_others_encoded(make_tiny_retriever: Make) -> None:
    rng, plain = np.random.default_rng(0), make_tiny_retriever()
    given = rng.normal(size=(2, plain.embedding_dim)).astype(np.float32)
    given /= np.linalg.norm(given, axis=1, keepdims=True)
    knowing = plain.knowing(["red mug", "blue mug"], given)
    texts = ["blue mug", "green bowl", "red mug"]
    found = knowing.encode_items(texts)
    np.testing.assert_array_equal(found[[0, 2]], given[[1, 0]])
    np.testing.assert_allclose(found[1], plain.encode_items(["green bowl"])[0], atol=1e-6)
    assert np.abs(plain.encode_items(["blue mug"])[0] - given[1]).max() > 0.01

    # A linear map is applied to what is known.
    kernel = rng.normal(size=(plain.embedding_dim,) * 2).astype(np.float32)
    mapped = knowing.with_map(kernel, items=True)
    expected = given @ kernel
    expected /= np.linalg.norm(expected, axis=1, keepdims=True)
    np.testing.assert_allclose(mapped.encode_items(["red mug", "blue mug"]), expected, atol=1e-5)
    unmapped = knowing.with_map(kernel, items=False)
    np.testing.assert_array_equal(unmapped.encode_items(["red mug"]), given[:1])


def test_towers_that_differ_by_a_map_agree_ahead_of_it(
    make_tiny_retriever: Make, golden_texts: list[str]
) -> None:
    rng = np.random.default_rng(0)
    plain, other = make_tiny_retriever(), make_tiny_retriever(seed=1)
    kernel = rng.normal(size=(plain.embedding_dim,) * 2).astype(np.float32)
    mapped = plain.with_map(kernel, items=True)
    assert mapped.base_fingerprint() == plain.base_fingerprint() != other.base_fingerprint()
    assert mapped.fingerprint() != plain.fingerprint()
    base = mapped.encode_base(golden_texts)
    np.testing.assert_allclose(base, plain.encode_items(golden_texts), atol=1e-6)
    np.testing.assert_allclose(
        plain.knowing(golden_texts, base).with_map(kernel, items=True).encode_items(golden_texts),
        mapped.encode_items(golden_texts),
        atol=1e-5,
    )
