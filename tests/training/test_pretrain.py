"""Pretraining: the model by its formula, and whole runs on a tiny encoder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import keras
import numpy as np
import pytest
from scipy.special import erf, log_softmax

from towers import Retriever, TextEncoder, TextSettings, Tokenizer
from towers.cli import cli, run
from towers.errors import InputError
from training.pretrain import pretrain
from training.pretrain_config import PretrainConfig
from training.pretrain_model import MaskedLanguageModel, masked_token_loss

WORDS = ["kettle", "mug", "garden", "coffee", "rake", "hose", "cat", "water", "lid", "steel"]
TEXTS = [f"{a} with {b} for {c}" for a in WORDS for b in WORDS for c in WORDS[:2] if a != b]


@pytest.fixture(scope="module")
def preset(
    tmp_path_factory: pytest.TempPathFactory,
    make_tiny_encoder: Callable[..., TextEncoder],
    tiny_vocabulary: tuple[str, ...],
) -> str:
    """A tiny encoder with dropout, as a checkpoint folder."""
    folder = tmp_path_factory.mktemp("preset")
    make_tiny_encoder(dropout=0.1).backbone.save_to_preset(str(folder))
    Tokenizer(tiny_vocabulary).save(folder)
    return str(folder)


def config(preset: str, **values: object) -> PretrainConfig:
    given = {"preset": preset, "max_length": 16, "steps": 30, "head_steps": 10, "batch_size": 16}
    return PretrainConfig.of(**{**given, "checkpoint_steps": 8, **values})


def weights(folder: Path | str) -> list[np.ndarray]:
    return TextEncoder.from_preset(str(folder)).backbone.get_weights()


# The model


def batch(rng: np.random.Generator, vocabulary: int) -> tuple[dict, np.ndarray, np.ndarray]:
    padding = np.ones((3, 7), np.int32)
    padding[1, 5:] = 0
    x = {
        "token_ids": rng.integers(5, vocabulary, size=(3, 7)).astype(np.int32),
        "padding_mask": padding,
        "positions": np.array([[1, 4], [2, 0], [3, 5]], np.int32),
    }
    labels = rng.integers(5, vocabulary, size=(3, 2)).astype(np.int32)
    return x, labels, np.array([[1, 1], [1, 0], [1, 1]], np.float32)


def test_loss_by_the_formula(make_tiny_encoder: Callable[..., TextEncoder]) -> None:
    backbone = make_tiny_encoder().backbone
    model = MaskedLanguageModel(backbone)
    rng = np.random.default_rng(0)
    for weight in model.head.trainable_weights:
        weight.assign(weight + rng.normal(size=weight.shape, scale=0.3))
    vocabulary = int(backbone.vocabulary_size)
    x, labels, known = batch(rng, vocabulary)

    # keras-hub's own forward pass, and the head from its weights.
    segments = {"segment_ids": np.zeros_like(x["token_ids"])}
    tokens = backbone({**{k: x[k] for k in ("token_ids", "padding_mask")}, **segments})
    tokens = np.array(tokens["sequence_output"])
    head = {w.path.split("masked_language_head/")[-1]: np.array(w) for w in model.head.weights}
    picked = np.take_along_axis(tokens, x["positions"][..., None], axis=1)  # [3, 2, hidden]
    z = picked @ head["intermediate_dense/kernel"] + head["intermediate_dense/bias"]
    z = z * 0.5 * (1 + erf(z / np.sqrt(2)))
    z = (z - z.mean(-1, keepdims=True)) / np.sqrt(z.var(-1, keepdims=True) + 1e-12)
    z = z * head["intermediate_layer_norm/gamma"] + head["intermediate_layer_norm/beta"]
    logits = z @ np.array(backbone.token_embedding.embeddings).T + head["output_bias"]
    np.testing.assert_allclose(np.array(model(x)), logits, atol=1e-2)
    terms = -np.take_along_axis(log_softmax(logits, axis=-1), labels[..., None], -1)[..., 0]
    expected = (terms * known).sum() / known.sum()

    model.compile(loss=masked_token_loss(), weighted_metrics=["accuracy"])
    found = model.evaluate(x, labels, sample_weight=known, verbose=0, return_dict=True)
    assert found["loss"] == pytest.approx(expected, rel=1e-3)
    right = ((logits.argmax(-1) == labels) * known).sum() / known.sum()
    assert found["accuracy"] == pytest.approx(right)


def test_loss_by_hand() -> None:
    # Two tokens of even odds among four, one of odds e : 1 : 1 : 1, one that does not count.
    logits = np.zeros((2, 2, 4), np.float32)
    logits[1, 0, 2] = 1.0
    loss = masked_token_loss()(
        np.array([[0, 1], [2, 3]]), logits, sample_weight=np.array([[1.0, 1.0], [1.0, 0.0]])
    )
    expected = (2 * np.log(4) + np.log((np.e + 3) / np.e)) / 3
    assert float(loss) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("trained", [False, True])
def test_what_is_trained(trained: bool, make_tiny_encoder: Callable[..., TextEncoder]) -> None:
    backbone = make_tiny_encoder().backbone
    model = MaskedLanguageModel(backbone, train_backbone=trained)
    x, labels, known = batch(np.random.default_rng(0), int(backbone.vocabulary_size))
    before = {weight.path: np.array(weight) for weight in model.weights}
    model.compile(optimizer=keras.optimizers.SGD(0.5), loss=masked_token_loss())
    model.fit(x, labels, sample_weight=known, verbose=0)
    changed = {w.path for w in model.weights if (before[w.path] != np.array(w)).any()}
    head = {w.path for w in model.head.weights} - {w.path for w in backbone.weights}
    pooled = {w.path for w in backbone.get_layer("pooled_dense").weights}
    assert changed >= head
    if trained:
        assert changed == {w.path for w in model.weights} - pooled
    else:
        assert changed == head


# Whole runs


def test_pretraining_learns_and_can_be_trained_on(preset: str, tmp_path: Path) -> None:
    output = tmp_path / "encoder"
    seen: list[tuple[int, int]] = []
    record = pretrain(
        TEXTS,
        config(preset, steps=60, learning_rate=2e-3),
        output,
        progress=lambda done, total: seen.append((done, total)),
    )
    assert seen == [(step, 60) for step in range(1, 61)]
    first, last = record["held_out"]
    assert (first["step"], last["step"]) == (10, 60)
    assert last["loss"] < first["loss"] - 0.3
    assert record["held_out_texts"] == 9
    assert json.loads((output / "pretraining.json").read_text()) == record
    assert not (output / "checkpoints").exists()
    assert not (output / "partial").exists()

    before, after = weights(preset), weights(output)
    assert [one.shape for one in before] == [one.shape for one in after]
    assert any((a != b).any() for a, b in zip(before, after, strict=True))
    settings = TextSettings("{title}", 16, 16)
    old, new = (Retriever.from_preset(str(p), text=settings) for p in (preset, output))
    assert old.tokenizer.vocabulary == new.tokenizer.vocabulary
    vectors = new.encode_items(["red mug", "rake"])
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    assert (vectors != old.encode_items(["red mug", "rake"])).any()


def test_head_steps_leave_the_encoder_alone(preset: str, tmp_path: Path) -> None:
    record = pretrain(TEXTS, config(preset, steps=12, head_steps=12), tmp_path / "encoder")
    assert [one["step"] for one in record["held_out"]] == [12]
    for a, b in zip(weights(preset), weights(tmp_path / "encoder"), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize(
    "stop", [5, *(pytest.param(n, marks=pytest.mark.slow) for n in (9, 15)), 27]
)
def test_an_interrupted_run_goes_on_as_if_nothing_had_been(
    stop: int, preset: str, whole: list[np.ndarray], tmp_path: Path
) -> None:
    output = tmp_path / "encoder"

    def interrupt(done: int, total: int) -> None:
        if done == stop:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pretrain(TEXTS, config(preset), output, progress=interrupt)
    with pytest.raises(InputError, match=r"holds no config\.json"):
        TextEncoder.from_preset(str(output))
    with pytest.raises(InputError, match="unfinished pretraining of other texts or settings"):
        pretrain(TEXTS, config(preset, seed=1), output)
    done: list[int] = []
    pretrain(TEXTS, config(preset), output, progress=lambda step, _: done.append(step))
    assert done[0] == max(step for step in (0, 8, 10, 16, 24) if step < stop) + 1
    for a, b in zip(whole, weights(output), strict=True):
        np.testing.assert_array_equal(a, b)
    with pytest.raises(InputError, match="holds an encoder already"):
        pretrain(TEXTS, config(preset), output)


@pytest.fixture(scope="module")
def whole(preset: str, tmp_path_factory: pytest.TempPathFactory) -> list[np.ndarray]:
    """The weights that a run without interruption ends with."""
    output = tmp_path_factory.mktemp("whole") / "encoder"
    pretrain(TEXTS[::-1], config(preset), output)
    return weights(output)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"steps": 0}, "steps: Input should be greater than or equal to 1"),
        ({"head_steps": 31}, "head_steps 31 is over steps 30"),
        ({"mask_rate": 1.0}, "mask_rate: Input should be less than 1"),
        ({"learning_rate": -1.0}, "learning_rate: Input should be greater than 0"),
        ({"max_length": 65}, "max_length 65 is over the encoder's 64 positions"),
        ({"preset": "./nowhere"}, "encoder './nowhere' is not a folder"),
    ],
)
def test_bad_settings(values: dict[str, object], message: str, preset: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=message):
        pretrain(TEXTS, config(**{"preset": preset, **values}), tmp_path / "encoder")


def test_bad_texts_and_folders(preset: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="two different texts or more; there are 1"):
        pretrain(["mug", "mug", ""], config(preset), tmp_path / "encoder")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "thesis.txt").write_text("mine")
    with pytest.raises(InputError, match="exists and is no pretraining"):
        pretrain(TEXTS, config(preset), tmp_path / "taken")


def test_divergence_is_said(preset: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"diverged with learning rate 1e\+30"):
        pretrain(TEXTS, config(preset, learning_rate=1e30), tmp_path / "encoder")


# The command line


def towers(*arguments: object) -> int:
    words = [str(argument) for argument in arguments]
    return run(lambda: cli.main(words, prog_name="towers", standalone_mode=False))


def test_from_files(preset: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    catalog, reviews = tmp_path / "catalog.csv", tmp_path / "reviews.csv"
    rows = "".join(f"i{n},{text},Harrow\n" for n, text in enumerate(TEXTS[:20]))
    catalog.write_text("item_id,title,brand\n" + rows)
    reviews.write_text("stars,body\n" + "".join(f"5,{text}\n" for text in TEXTS[15:30]) + "1,\n")
    common = ("--encoder", preset, "--max-length", 16, "--steps", 4, "--head-steps", 2)
    both = ("--catalog", catalog, "--texts", reviews, "--text-column", "body")
    assert towers("pretrain", *both, "--output", tmp_path / "one", *common, "--json") == 0
    answer = json.loads(capsys.readouterr().out)
    assert answer["texts"] == 35  # with brand and without are different texts
    assert answer["data"]["catalog"]["text"] == "{title}[ {brand}]"
    assert answer["settings"]["steps"] == 4
    one = ("--catalog", catalog, "--item-text", "{title}")
    assert towers("pretrain", *one, "--output", tmp_path / "two", *common) == 0
    captured = capsys.readouterr()
    assert captured.out.startswith("Masked words on 1 texts kept back: loss ")
    assert f"Encoder written to {tmp_path / 'two'}" in captured.out
    assert "20 different texts" in captured.err

    for command, message in [
        ((), "give --catalog, --texts, or both"),
        (("--texts", reviews), "--texts and --text-column belong together"),
        (("--texts", reviews, "--text-column", "text"), "no column 'text'"),
        ((*both[2:], "--item-text", "{title}"), "--item-text has no effect without --catalog"),
        ((*one, "--steps", 0), "steps: Input should be greater than or equal to 1"),
    ]:
        assert towers("pretrain", *command, "--output", tmp_path / "three") == 2
        assert message in capsys.readouterr().err
