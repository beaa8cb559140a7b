"""A tiny BERT and a tiny catalogue that every test may use."""

from __future__ import annotations

import os

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")  # before TFRS is imported anywhere
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

# Strings that break tokenizers, encoders, protocols and file formats.
GOLDEN_TEXTS = [
    "kettle",
    "Café crème brûlée",
    "naïve façade ½ in. × 20 cm",
    "漢字かな交じり文 电热水壶",
    "👩‍👩‍👧 mug 🔥",
    "ﬁne ligature Ⅷ",
    "tab\tand\nline\u0000null\u200bzero\ufeff",
    "",
    "   ",
    "x" * 10_000,
    "red mug " * 1_250,
    'quote " comma , backslash \\ {brace}',
    "[SEP] [MASK]",
]

TINY_CATALOG = {
    "item_id": ["k1", "k2", "m1", "m2", "g1", "g2", "p 1", "é1"],
    "title": [
        "Electric kettle 1.7 l",
        "Gooseneck kettle for coffee",
        "Travel mug with lid",
        "Red mug",
        "Garden rake",
        "Garden hose 20 m",
        "Cat scratching post",
        "Crème brûlée torch",
    ],
    "brand": ["Harrow", "Kettlewise", "Harrow", "", "Oakfield", "Oakfield", "Purr", ""],
    "description": [
        "Boils water fast and switches off by itself.",
        "A slow pour for filter coffee.",
        "Keeps coffee hot for hours.",
        "Holds 350 ml.",
        "Steel tines, ash handle.",
        "Does not kink.",
        "Saves the sofa from claws.",
        "Refillable, with a safety lock.",
    ],
}


@dataclass(frozen=True)
class Answer:
    """What the command line said.

    Attributes:
        status: exit status.
        out: stdout.
        err: stderr.
    """

    status: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The object that a verb printed which did what it was to do."""
        assert self.status == 0, self.err
        return json.loads(self.out)


class ServerProcess:
    """`towers serve` in a process of its own, on free ports.

    Attributes:
        process: the process; what it prints later can be read from its stdout.
        printed: what it printed until it was ready.
        grpc: HOST:PORT of its gRPC API.
        rest: http://HOST:PORT of its REST API.
    """

    def __init__(self, base: Path, *options: object) -> None:
        where = ("--model-base-path", base, "--host", "127.0.0.1", "--port", 0, "--rest-port", 0)
        command = [sys.executable, "-m", "towers", "serve", *map(str, (*where, *options))]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        self.printed = ""
        for line in self.process.stdout:
            self.printed += line
            if line == "Ready\n":
                break
        self.grpc = re.search(r"gRPC on (127\.0\.0\.1:\d+)\n", self.printed)[1]
        self.rest = re.search(r"REST on (http://127\.0\.0\.1:\d+)/v1/models/", self.printed)[1]


@pytest.fixture(scope="session")
def start_server() -> Iterator[Callable[..., ServerProcess]]:
    """Starts `towers serve` on a model's folder; what a test leaves running ends with the tests."""
    started: list[ServerProcess] = []

    def start(base: Path, *options: object) -> ServerProcess:
        started.append(ServerProcess(base, *options))
        return started[-1]

    yield start
    for server in started:
        server.process.kill()
        server.process.wait()
        server.process.stdout.close()


@pytest.fixture
def towers(capsys: pytest.CaptureFixture[str]) -> Callable[..., Answer]:
    """Runs a verb in this process, as `main` does."""
    from towers.cli import cli, run

    def call(*arguments: object) -> Answer:
        words = [str(argument) for argument in arguments]
        status = run(lambda: cli.main(words, prog_name="towers", standalone_mode=False))
        captured = capsys.readouterr()
        return Answer(status, captured.out, captured.err)

    return call


@pytest.fixture(scope="session")
def towers_process() -> Callable[..., Answer]:
    """Runs a verb in a process of its own."""

    def call(*arguments: object) -> Answer:
        command = [sys.executable, "-m", "towers", *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
        return Answer(done.returncode, done.stdout, done.stderr)

    return call


@pytest.fixture
def eagerly() -> Iterator[None]:
    """Runs compiled functions as plain Python: to trace a training step takes longer than a few."""
    import tensorflow as tf

    tf.config.run_functions_eagerly(True)
    yield
    tf.config.run_functions_eagerly(False)


@pytest.fixture(scope="session")
def golden_texts() -> list[str]:
    """Strings that break tokenizers, encoders, protocols and file formats."""
    return list(GOLDEN_TEXTS)


@pytest.fixture(scope="session")
def tiny_catalog() -> dict[str, list[str]]:
    """Eight items as columns: item_id, title, brand, description."""
    return {name: list(values) for name, values in TINY_CATALOG.items()}


@pytest.fixture(scope="session")
def tiny_vocabulary() -> tuple[str, ...]:
    """A WordPiece vocabulary: special tokens, the catalogue's words, letters and their suffixes."""
    words = {
        word.strip(".,").lower()
        for column in ("title", "description")
        for text in TINY_CATALOG[column]
        for word in text.split()
    }
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)] + list("0123456789.,")
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    tokens = [*special, *letters, *(f"##{x}" for x in letters), *sorted(words - set(letters))]
    return tuple(dict.fromkeys(tokens))


@pytest.fixture(scope="session")
def make_tiny_encoder(tiny_vocabulary: tuple[str, ...]) -> Callable[..., object]:
    """A factory of untrained text encoders, 32 wide, of the tiny vocabulary."""
    import keras
    import keras_hub

    from towers import TextEncoder

    def make(
        seed: int = 0,
        dtype: str = "float32",
        dropout: float = 0.0,
        layers: int = 1,
        **arguments: object,
    ) -> TextEncoder:
        keras.utils.set_random_seed(seed)
        backbone = keras_hub.models.BertBackbone(
            vocabulary_size=len(tiny_vocabulary),
            num_layers=layers,
            num_heads=2,
            hidden_dim=32,
            intermediate_dim=64,
            max_sequence_length=64,
            dropout=dropout,
            dtype=dtype,
        )
        # Wider than BERT's initialiser: texts shall have clearly different vectors.
        for weight in backbone.trainable_weights:
            if "kernel" in weight.path or "embeddings" in weight.path:
                weight.assign(weight * 6.0)
        return TextEncoder(backbone, **arguments)

    return make


@pytest.fixture(scope="session")
def make_tiny_retriever(
    tiny_vocabulary: tuple[str, ...], make_tiny_encoder: Callable[..., object]
) -> Callable[..., object]:
    """A factory of untrained retrievers."""
    from towers import Retriever, TextSettings, Tokenizer, TwoTower

    def make(
        seed: int = 0,
        shared: bool = True,
        dtype: str = "float32",
        text: TextSettings | None = None,
        projection_dim: int | None = None,
        layers: int = 1,
        **two_tower: object,
    ) -> Retriever:
        def tower() -> object:
            return make_tiny_encoder(seed, dtype, projection_dim=projection_dim, layers=layers)

        query_tower = tower()
        item_tower = query_tower if shared else tower()
        settings = text or TextSettings("{title}[ by {brand}][. {description}]", 16, 48)
        return Retriever(
            TwoTower(query_tower, item_tower, **two_tower), Tokenizer(tiny_vocabulary), settings
        )

    return make


@pytest.fixture(scope="session")
def tiny_retriever(make_tiny_retriever: Callable[..., object]) -> object:
    """An untrained retriever for tests that do not change it."""
    return make_tiny_retriever()


@pytest.fixture(scope="session")
def make_tiny_preset(tmp_path_factory: pytest.TempPathFactory) -> Callable[[object], str]:
    """Writes the checkpoint of a retriever to a folder, to be named as an encoder."""

    def make(retriever: object) -> str:
        folder = tmp_path_factory.mktemp("tiny_preset")
        retriever.model.query_tower.backbone.save_to_preset(str(folder))
        retriever.tokenizer.save(folder)
        return str(folder)

    return make


@pytest.fixture(scope="session")
def tiny_preset(make_tiny_preset: Callable[[object], str], tiny_retriever: object) -> str:
    """A folder with the checkpoint of `tiny_retriever`, to be named as an encoder."""
    return make_tiny_preset(tiny_retriever)
